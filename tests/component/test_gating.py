"""vLLM's router for CPUs with the compiled loop: the same experts, the same weights."""

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from services.attention.gating import GroupedTopk, compile_gate

EXPERTS = 32


def router(**other: object) -> CPURouter:
    given = {
        "top_k": 4,
        "global_num_experts": EXPERTS,
        "use_grouped_topk": True,
        "num_expert_group": 4,
        "topk_group": 2,
        "renormalize": True,
        "scoring_func": "sigmoid",
        "e_score_correction_bias": torch.linspace(-0.2, 0.2, EXPERTS),
        **other,
    }
    return CPURouter(**given)


def chosen(of: CPURouter, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids by rising id."""
    weights, ids = of.select_experts(
        hidden_states=logits, router_logits=logits, topk_indices_dtype=torch.int32
    )
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    order = ids.argsort(dim=1)
    return weights.gather(1, order), ids.gather(1, order)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"e_score_correction_bias": None, "scoring_func": "softmax", "renormalize": False},
        {"num_expert_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5},
        {"e_score_correction_bias": torch.linspace(-0.2, 0.2, EXPERTS).bfloat16()},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chooses_as_vllms(other: dict[str, object], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(60, 2 * EXPERTS, generator=generator)
    logits = wide.to(dtype)[:, ::2]  # apart in memory
    if dtype is torch.bfloat16:  # equals are anybody's choice
        logits = torch.stack([torch.randperm(EXPERTS, generator=generator) for _ in range(60)])
        logits = (logits / 8 - 2).to(dtype)
    vllms, ours = router(**other), router(**other)
    compile_gate(ours)
    assert isinstance(ours.custom_routing_function, GroupedTopk)
    weights, ids = chosen(ours, logits)
    wanted_weights, wanted_ids = chosen(vllms, logits)
    torch.testing.assert_close(ids, wanted_ids, rtol=0, atol=0)
    torch.testing.assert_close(weights, wanted_weights, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        {"use_grouped_topk": False, "scoring_func": "softmax", "e_score_correction_bias": None},
        {"scoring_func": "tanh"},
        {"num_expert_group": 5},
        {"topk_group": 5},
        {"num_expert_group": 16, "topk_group": 1},
        {"num_expert_group": 0},
        {"num_expert_group": None},
        {"num_expert_group": 32, "topk_group": 32},
        {"e_score_correction_bias": torch.zeros(1)},
    ],
)
def test_what_it_does_not_know_stays_vllms(other: dict[str, object]) -> None:
    ours = router(**other)
    compile_gate(ours)
    assert ours.custom_routing_function is None
    assert ours.use_grouped_topk is other.get("use_grouped_topk", True)


def test_a_router_of_another_kind_stays_as_it_is() -> None:
    compile_gate(object())

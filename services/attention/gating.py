"""Grouped top-k in one compiled loop, where vLLM 0.32 has some fifteen small calls of torch.

Given to the router that vLLM has on CPUs as its `custom_routing_function`, once the model is
loaded. The choice is vLLM's; weights differ from its by the order in which they are added up.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from router.grouped_topk import grouped_topk

SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True)
class GroupedTopk:
    """Of one layer. bias: [E] float32, zeros where the model has none."""

    scoring: str  # one of SCORINGS
    n_groups: int
    n_kept: int
    bias: NDArray[np.float32]
    is_biased: bool
    factor: np.float32

    def __call__(
        self,
        hidden_states: torch.Tensor,
        gating_output: torch.Tensor,
        topk: int,
        renormalize: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """gating_output [T, E] → weights [T, K] float32 and expert ids [T, K] int32."""
        logits = gating_output.float()
        scores = logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(dim=-1)
        weights = torch.empty(scores.shape[0], topk)
        ids = torch.empty(scores.shape[0], topk, dtype=torch.int32)
        grouped_topk(
            scores.contiguous().numpy(),
            self.bias,
            self.is_biased,
            self.n_groups,
            self.n_kept,
            renormalize,
            self.factor,
            weights.numpy(),
            ids.numpy(),
        )
        return weights, ids


def compile_gate(router: object) -> None:
    """Have a layer's router choose by `GroupedTopk`, where vLLM's for CPUs would by groups."""
    if not isinstance(router, CPURouter) or not _fits(router):
        return
    bias, n_experts = router.e_score_correction_bias, router.global_num_experts
    router.custom_routing_function = GroupedTopk(
        router.scoring_func,
        router.num_expert_group,
        router.topk_group,
        np.zeros(n_experts, np.float32) if bias is None else bias.detach().float().numpy(),
        bias is not None,
        np.float32(router.routed_scaling_factor),
    )
    router.use_grouped_topk = False


def _fits(router: CPURouter) -> bool:
    """What does not is vLLM's to refuse."""
    if not router.use_grouped_topk or router.scoring_func not in SCORINGS:
        return False
    groups, kept, experts = router.num_expert_group, router.topk_group, router.global_num_experts
    size, left = divmod(experts, groups)
    return not left and kept <= groups and bool(router.top_k <= size * kept)

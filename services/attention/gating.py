"""Grouped top-k in one compiled loop, where vLLM 0.32 has some fifteen small calls of torch.

Given to the router that vLLM has on CPUs as its `custom_routing_function`, once the model is
loaded. The choice is vLLM's; weights differ from its by the order in which they are added up.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from router.grouped_topk import Gate, grouped_topk

SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True)
class GroupedTopk:
    """Of one layer. bias: [E] float32, zeros where the model has none."""

    scoring: str  # one of SCORINGS
    bias: NDArray[np.float32]
    gate: Gate

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
        weights = np.empty((scores.shape[0], topk), np.float32)
        ids = np.empty((scores.shape[0], topk), np.int32)
        grouped_topk(scores.contiguous().numpy(), self.bias, self.gate, weights, ids)
        return torch.from_numpy(weights), torch.from_numpy(ids)


def compile_gate(router: object) -> None:
    """Have a layer's router choose by `GroupedTopk`, where vLLM's for CPUs would by groups."""
    if not isinstance(router, CPURouter) or not _fits(router):
        return
    bias, n_experts = router.e_score_correction_bias, router.global_num_experts
    gate = Gate(
        router.num_expert_group,
        router.topk_group,
        bias is not None,
        bool(router.renormalize),
        np.float32(float(router.routed_scaling_factor)),
    )
    added = np.zeros(n_experts, np.float32) if bias is None else bias.detach().float().numpy()
    router.custom_routing_function = GroupedTopk(router.scoring_func, added, gate)
    router.use_grouped_topk = False


def _fits(router: CPURouter) -> bool:
    """What does not is vLLM's to refuse."""
    groups, kept, experts = router.num_expert_group, router.topk_group, router.global_num_experts
    if not router.use_grouped_topk or router.scoring_func not in SCORINGS or not (groups and kept):
        return False
    bias, (size, left) = router.e_score_correction_bias, divmod(experts, groups)
    has_room = kept <= groups and bool(router.top_k <= size * kept)
    return not left and has_room and (bias is None or (size > 1 and bias.shape == (experts,)))

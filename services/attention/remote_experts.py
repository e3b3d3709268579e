"""What a MoE layer of the attention side computes with: the pool.

vLLM's runner has applied the gate; here rows leave, the shared experts run while they are away,
and the answers are combined in gate order.
"""

from typing import TYPE_CHECKING

import torch
from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExpertsOrder

from services.attention.gating import compile_gate
from services.attention.remote_pool import RemotePool
from services.attention.settings import RemoteSettings
from services.vllm_hooks import NO_OUTPUTS, RemoteMethod, exchange_outputs, moe_runners

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.runner.shared_experts import SharedExperts


def connect_layers(model: torch.nn.Module, settings: RemoteSettings) -> None:
    """Give every MoE layer its place in the pool; returns when the table is complete."""
    pool = RemotePool.connect(settings)
    runners = moe_runners(model)
    for layer, runner in enumerate(runners):
        experts = runner.routed_experts
        experts.quant_method = RemoteExperts(experts, pool=pool, layer=layer)
        compile_gate(runner.router)
    pool.wait_until_complete(len(runners))
    pool.follow_while_idle()


class RemoteExperts(RemoteMethod):
    """The method of one layer."""

    def __init__(self, experts: "RoutedExperts", *, pool: RemotePool, layer: int) -> None:
        """layer: index among the MoE layers, the same on every shard."""
        super().__init__(experts.moe_config)
        self.pool = pool
        self._layer = layer
        self._weights_on_input = bool(experts.apply_router_weight_on_input)

    def apply(  # type: ignore[override]
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: "SharedExperts | None",
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """x [T, H], topk_weights [T, K] float32, topk_ids [T, K] int32 → [T, H] like x."""

        kept: list[torch.Tensor | None] = []

        def run_shared_experts() -> None:
            if shared_experts is not None:
                shared_experts(shared_experts_input, SharedExpertsOrder.MK_INTERNAL_OVERLAPPED)
                kept[:] = exchange_outputs(shared_experts, NO_OUTPUTS)

        if self._weights_on_input:  # vLLM does so for one choice per token only
            x = x * topk_weights.to(x.dtype)
            topk_weights = torch.ones_like(topk_weights)
        out = self.pool.compute(
            self._layer, x, topk_weights, topk_ids, meanwhile=run_shared_experts
        )
        if shared_experts is not None:  # the other half of the step has used the place meanwhile
            exchange_outputs(shared_experts, kept)
        return out

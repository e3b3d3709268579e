"""Experts in bfloat16, on CPUs with AVX-512's bfloat16 and without AMX.

vLLM 0.32 computes them there in its loops for all CPUs. Its kernel for experts of few bits, which
it takes with AMX alone, takes bfloat16 as well and needs no AMX: half the time (DECISIONS.md).
Given to vLLM as its own method out of tree, while a layer is built.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.utils import replace_parameter

from services.vllm_hooks import built_as, has_bfloat16_alone


class PackedExperts(CPUUnquantizedExperts):
    """SwiGLU experts without biases and limits, their weights packed in pairs of rows."""

    reduction_alignment = 32

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """Pack w13_weight [E, 2I, H] and w2_weight [E, H, I]; their shapes stay."""
        self._pad_moe_intermediate(layer)
        for name in ("w13_weight", "w2_weight"):
            packed = torch.ops._C.convert_weight_packed(getattr(layer, name))
            replace_parameter(layer, name, packed)

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: object,
        apply_router_weight_on_input: bool,
    ) -> None:
        """hidden_states [T, H], topk_weights and topk_ids [T, K] to output [T, H]."""
        unscaled = (None,) * 4
        ops.fused_experts_cpu(
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            ops.CPUQuantMethod.UNQUANT,
            *unscaled,
            block_size=None,
        )


class PackedMethod(UnquantizedFusedMoEMethod):
    """vLLM's, with `PackedExperts` where it would take the loops for all CPUs."""

    def __init__(self, moe: FusedMoEConfig) -> None:
        super().__init__(moe)
        chosen: type | None = self.experts_cls  # type: ignore[has-type]
        if chosen is CPUUnquantizedExperts and _fits(moe):
            self.experts_cls = PackedExperts


def _fits(moe: FusedMoEConfig) -> bool:
    return (
        moe.in_dtype == torch.bfloat16
        and moe.activation == MoEActivation.SILU
        and not moe.has_bias
        and moe.swiglu_limit is None
        and PackedExperts._supports_grouped_gemm(moe)[0]
    )


def packed_experts() -> AbstractContextManager[None]:
    """While open, layers are built with these where this CPU can compute them."""
    if not has_bfloat16_alone():
        return nullcontext()
    return built_as({UnquantizedFusedMoEMethod: PackedMethod})

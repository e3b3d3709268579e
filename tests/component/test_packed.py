"""Experts in bfloat16 by the kernel for those of few bits: where it is taken."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import (
    CPUUnquantizedExperts,
    X86CPUUnquantizedExperts,
)
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.platforms import current_platform

from router.errors import EngineError
from services import vllm_hooks
from services.experts import packed
from services.experts.packed import PackedExperts, packed_experts
from tests.support.hardware import needs_amx, needs_bfloat16_alone

HIDDEN, INTERMEDIATE, EXPERTS = 96, 64, 4


@pytest.fixture(autouse=True)
def _building() -> Iterator[None]:
    current_platform.import_kernels()
    with set_current_vllm_config(VllmConfig()):
        yield


def layer(**other: object) -> FusedMoEConfig:
    made = FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=1,
        hidden_dim=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_local_experts=EXPERTS,
        num_logical_experts=EXPERTS,
        activation=MoEActivation.SILU,
        device="cpu",
        routing_method=RoutingMethodType.TopK,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
    )
    return dataclasses.replace(made, **other)


def chosen(config: FusedMoEConfig) -> type:
    kind: type = UnquantizedFusedMoEMethod(config).experts_cls
    return kind


@needs_bfloat16_alone
def test_layers_that_are_built_meanwhile_have_it() -> None:
    with packed_experts():
        assert chosen(layer()) is PackedExperts
    assert chosen(layer()) is CPUUnquantizedExperts


@pytest.mark.parametrize(
    "other",
    [
        {"in_dtype": torch.float32},
        {"in_dtype": torch.float16},
        {"activation": MoEActivation.SWIGLUOAI},
        {"has_bias": True},
        {"swiglu_limit": 7.0},
    ],
)
def test_other_layers_keep_vllms(other: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows SwiGLU alone, without limits and biases, in bfloat16."""
    monkeypatch.setattr(packed, "has_bfloat16_alone", lambda: True)
    vllms = chosen(layer(**other))
    with packed_experts():
        assert chosen(layer(**other)) is vllms


@needs_amx
def test_with_amx_vllms_choice_stays() -> None:
    with packed_experts():
        assert chosen(layer()) is X86CPUUnquantizedExperts


def test_a_missing_kernel_is_named_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_hooks, "has_bfloat16_alone", lambda: True)
    monkeypatch.setitem(vllm_hooks.EXPECTED_BFLOAT16_KERNELS, "no_kernel", ["out"])
    with pytest.raises(EngineError, match=rf"{vllm_hooks.VLLM_VERSION}.*_C.no_kernel\('out',"):
        vllm_hooks.check_vllm()

"""Rotary embeddings of latent attention by vLLM's kernel: as torch computes them, and in use."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.deepseek_scaling_rope import (
    DeepseekScalingRotaryEmbedding,
)
from vllm.platforms import current_platform

from services.attention.rotary import FlatRotary, FlatScaledRotary, flat_rotary

POSITIONS, TOKENS, HEADS = 256, 5, 3
BOUND = {torch.bfloat16: 2**-5, torch.float16: 2**-8, torch.float32: 1e-6}
"""For the first two one step of the largest values, which are between 4 and 8."""


@pytest.fixture(autouse=True)
def _building() -> Iterator[None]:
    current_platform.import_kernels()
    with set_current_vllm_config(VllmConfig()):
        yield


def build(kind: str, width: int, dtype: torch.dtype, *, neox: bool) -> Any:
    with flat_rotary():
        if kind == "plain":
            return RotaryEmbedding(width, width, POSITIONS, 10000.0, neox, dtype)
        return DeepseekScalingRotaryEmbedding(
            width, width, POSITIONS, 10000.0, neox, 4.0, dtype, mscale=0.7, mscale_all_dim=1.0
        )


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_rotates_parts_of_heads(kind: str, width: int, dtype: torch.dtype, neox: bool) -> None:
    """As latent attention passes them: ends of queries, and the end of what keys come from."""
    layer = build(kind, width, dtype, neox=neox)
    assert isinstance(layer, FlatRotary | FlatScaledRotary)
    generator = torch.Generator().manual_seed(width)
    whole = torch.randn(TOKENS, HEADS, 64 + width, generator=generator).to(dtype)
    latent = torch.randn(TOKENS, 128 + width, generator=generator).to(dtype)
    query, key = whole[..., 64:], latent[:, 128:].unsqueeze(1)
    positions = torch.randint(0, POSITIONS, (TOKENS,), generator=generator)
    before = query.clone(), key.clone()
    rotated = layer.forward_cpu(positions, query, key)
    for got, meant, was in zip(
        rotated, layer.forward_native(positions, *before), before, strict=True
    ):
        assert got is not None
        assert got.shape == meant.shape
        assert not torch.equal(got, was)
        torch.testing.assert_close(got, meant, rtol=0, atol=BOUND[dtype])


def test_other_attention_keeps_vllms_way() -> None:
    """Whole heads side by side are rotated where they lie."""
    layer = build("plain", 64, torch.float32, neox=True)
    query, key = torch.randn(TOKENS, 2 * 64), torch.randn(TOKENS, 64)
    out, _ = layer.forward_cpu(torch.arange(TOKENS), query, key)
    assert out is query


def test_only_models_that_are_built_meanwhile_have_it() -> None:
    with flat_rotary():
        assert {"RotaryEmbedding", "DeepseekScalingRotaryEmbedding"} <= op_registry_oot.keys()
    assert type(RotaryEmbedding(64, 64, 8, 1e4, True, torch.float32)) is RotaryEmbedding

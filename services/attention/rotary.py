"""Rotary embeddings of latent attention by the kernel that vLLM 0.32 has for CPUs.

The kernel wants a token's heads side by side, and latent attention passes parts of heads, which
it misreads; vLLM's own way round (`engine_args`) is some thirty calls of torch in every layer, a
tenth of a decoding step. Here the parts are copied first. Uses vLLM's out-of-tree registration.
"""

from contextlib import AbstractContextManager

import torch
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding, RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.deepseek_scaling_rope import (
    DeepseekScalingRotaryEmbedding,
)

from services.vllm_hooks import built_as

LANES = 16  # numbers of half a rotated part; the kernel takes whole vectors of them
Rotated = tuple[torch.Tensor, torch.Tensor | None]


class FlatRotary(RotaryEmbedding):
    """vLLM's, for parts of heads too."""

    def forward_cpu(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> Rotated:
        if query.dim() == 2:
            whole: Rotated = super().forward_cpu(positions, query, key)
            return whole
        if key is not None and _fits(self):
            return _rotated(self, positions, query, key)
        native: Rotated = self.forward_native(positions, query, key)
        return native


class FlatScaledRotary(DeepseekScalingRotaryEmbedding):
    """DeepSeek's YaRN."""

    def forward_cpu(
        self,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
    ) -> Rotated:
        if key is not None and offsets is None and _fits(self):
            return _rotated(self, positions, query, key)
        native: Rotated = self.forward_native(positions, query, key, offsets)
        return native


def _fits(layer: RotaryEmbeddingBase) -> bool:
    return int(layer.rotary_dim) % (2 * LANES) == 0


def _rotated(
    layer: RotaryEmbeddingBase, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> Rotated:
    """positions [T]; query and key [T, N, D] of any strides; in place where that is one piece."""
    flat_query = query.contiguous().view(positions.shape[0], -1)
    flat_key = key.contiguous().view(positions.shape[0], -1)
    torch.ops._C.rotary_embedding(
        positions,
        flat_query,
        flat_key,
        layer.head_size,
        layer._match_cos_sin_cache_dtype(query),
        layer.is_neox_style,
    )
    return flat_query.view(query.shape), flat_key.view(key.shape)


def flat_rotary() -> AbstractContextManager[None]:
    """While open, models are built with these."""
    return built_as({RotaryEmbedding: FlatRotary, DeepseekScalingRotaryEmbedding: FlatScaledRotary})

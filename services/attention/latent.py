"""Latent attention in bfloat16, on CPUs with AVX-512's bfloat16 and without AMX.

vLLM 0.32 has a reference there: a decode kernel of plain loops, and products by W_UK and W_UV
that copy these weights at every call. Its kernels for AMX need no more than AVX-512's bfloat16 and
are the faster ones (DECISIONS.md). Given to vLLM by its registry of attention backends, in place
of the reference, while a model is built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.mla.amx_mla import AMXMLABackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from services.vllm_hooks import forget_attention_backends, has_bfloat16_alone, latent_layers

REFERENCE = AttentionBackendEnum.CPU_MLA
BLOCK_TOKENS = 16  # of the cache, where vLLM expects its reference


class LatentBackend(AMXMLABackend):
    """vLLM's for AMX, which takes blocks of any size."""

    @staticmethod
    def get_name() -> str:
        """The name that this process knows it by."""
        return str(REFERENCE.name)

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [BLOCK_TOKENS]

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        return block_size is None or block_size == BLOCK_TOKENS


@contextmanager
def latent_attention(config: VllmConfig) -> Iterator[None]:
    """While open, a model of this configuration is built with `LatentBackend` where that runs."""
    if not _fits(config):
        yield
        return
    register_backend(REFERENCE, f"{LatentBackend.__module__}.{LatentBackend.__qualname__}")
    forget_attention_backends()
    try:
        yield
    finally:
        REFERENCE.clear_override()
        forget_attention_backends()


def _fits(config: VllmConfig) -> bool:
    """An operator's own choice of a backend stays, and so does vLLM's for weights of few bits."""
    return (
        has_bfloat16_alone()
        and config.model_config.dtype == torch.bfloat16
        and config.quant_config is None
        and config.attention_config.backend is None
        and not REFERENCE.is_overridden()
    )


def settle_weights(model: torch.nn.Module) -> None:
    """Have vLLM's reference not copy W_UK and W_UV at every call: torch's product wants them so."""
    for layer in latent_layers(model):
        for weight in (getattr(layer, name, None) for name in ("W_UK_T", "W_UV")):
            if isinstance(weight, torch.Tensor):
                weight.data = weight.data.contiguous()

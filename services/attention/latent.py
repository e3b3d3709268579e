"""Latent attention in bfloat16, on CPUs with AVX-512's bfloat16 and without AMX.

vLLM 0.32 has a reference there: a decode kernel of plain loops, and products by W_UK and W_UV
that copy these weights at every call. Its kernels for AMX need no more than AVX-512's bfloat16 and
are the faster ones (DECISIONS.md). Given to vLLM by its registry of attention backends, in place
of the reference, while a model is built. Two things differ from vLLM with AMX: a decoded row's
bits do not depend on how long the others of its batch are, and prompts are filled up to few
lengths, since the kernel for them keeps some MiB for each length that it has met.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.mla.amx_mla import (
    AMXMLABackend,
    AMXMLAImpl,
    AMXMLAMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from services.vllm_hooks import forget_attention_backends, has_bfloat16_alone

REFERENCE = AttentionBackendEnum.CPU_MLA
BLOCK_TOKENS = 16  # of the cache, where vLLM expects its reference
WHOLE = 32  # the kernels take heads whose parts are multiples of so many numbers
SHORT, SHORT_STEP, STEP = 256, 16, 64  # tokens of a prompt, and what its length is a multiple of


def filled_lengths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The lengths [P] that prompts of these are computed with."""
    step = np.where(lengths <= SHORT, SHORT_STEP, STEP)
    filled: NDArray[np.int64] = -(-lengths // step) * step
    return filled


class LatentMetadataBuilder(AMXMLAMetadataBuilder):
    """vLLM's for AMX, and which rows fill up each prompt."""

    def build(self, *arguments: Any, **named: Any) -> Any:
        metadata = super().build(*arguments, **named)
        if metadata.decode is not None:
            metadata.decode.num_kv_splits = 1  # vLLM: by the longest of the batch
        if metadata.prefill is not None:
            fill_up(metadata.prefill)
        return metadata


def fill_up(prefill: Any) -> None:
    """Lengthen the prompts of a step's metadata.

    Sets filled_rows [F], the step's row for each that is computed, a prompt's last one again
    behind it, and kept_rows [T], where the step's own are among those; None if none is added.
    """
    lengths, starts = prefill.extend_seq_lens.numpy(), prefill.extend_start_loc.numpy()
    filled = filled_lengths(lengths)
    more = filled - lengths
    prefill.filled_rows = prefill.kept_rows = None
    if not more.any():
        return
    begin = np.cumsum(filled) - filled
    place = np.arange(filled.sum()) - np.repeat(begin, filled)
    last = np.repeat(lengths - 1, filled)
    rows = np.repeat(starts, filled) + np.minimum(place, last)
    prefill.filled_rows = torch.from_numpy(rows)
    prefill.kept_rows = torch.from_numpy(np.flatnonzero(place <= last))
    prefill.extend_seq_lens = torch.from_numpy(filled)
    prefill.extend_start_loc = torch.from_numpy(begin)
    prefill.max_len_extend = int(filled.max())
    prefill.cpu_seq_lens = prefill.cpu_seq_lens + torch.from_numpy(more)
    lacking = int(prefill.cpu_seq_lens.max()) - prefill.req_to_token.shape[1]
    if lacking > 0:  # the kernel compares, and reads what is cached alone
        prefill.req_to_token = torch.nn.functional.pad(prefill.req_to_token, (0, lacking))


class LatentImpl(AMXMLAImpl):
    """vLLM's for AMX, with prompts filled up."""

    def forward_mha(
        self,
        q: torch.Tensor,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: Any,
        k_scale: torch.Tensor,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
    ) -> None:
        """q [T, N, P + R], kv_c_normed [T, L], k_pe [T, 1, R] to output [T, N * V]."""
        rows, kept = attn_metadata.prefill.filled_rows, attn_metadata.prefill.kept_rows
        parts, out = (q, kv_c_normed, k_pe), output
        if rows is not None:
            parts = (q[rows], kv_c_normed[rows], k_pe[rows])
            out = output.new_empty(rows.shape[0], output.shape[1])
        super().forward_mha(*parts, kv_c_and_k_pe_cache, attn_metadata, k_scale, out, output_scale)
        if rows is not None:
            torch.index_select(out, 0, kept, out=output)


class LatentBackend(AMXMLABackend):
    """vLLM's for AMX, with the reference's name and blocks: the kernels take blocks of any size."""

    @staticmethod
    def get_name() -> str:
        """The name that this process knows it by."""
        return str(REFERENCE.name)

    @staticmethod
    def get_impl_cls() -> type[AMXMLAImpl]:
        return LatentImpl

    @staticmethod
    def get_builder_cls() -> type[AMXMLAMetadataBuilder]:
        return LatentMetadataBuilder

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
    asked, model = config.attention_config, config.model_config
    parts = ("qk_nope_head_dim", "v_head_dim")
    return (
        has_bfloat16_alone()
        and model.dtype == torch.bfloat16
        and config.quant_config is None
        and config.cache_config.cache_dtype == "auto"
        and asked.backend is None
        and not asked.backend_per_kind
        and not REFERENCE.is_overridden()
        and model.get_head_size() in LatentBackend.get_supported_head_sizes()
        and all(getattr(model.hf_text_config, part, 0) % WHOLE == 0 for part in parts)
    )

"""Latent attention by kernels that vLLM has for AMX, where there is none: chosen, and right."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CacheConfig, VllmConfig
from vllm.platforms import CpuArchEnum, current_platform
from vllm.v1.attention.backends.mla.amx_mla import AMXMLAMetadataBuilder
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

from services import vllm_hooks
from services.attention import latent
from services.attention.latent import (
    REFERENCE,
    LatentBackend,
    LatentImpl,
    LatentMetadataBuilder,
    fill_up,
    filled_lengths,
    latent_attention,
)
from services.vllm_hooks import has_bfloat16_alone
from tests.support.hardware import bfloat16_alone, needs_bfloat16_alone

HEADS, LATENT, PLAIN, ROPE, VALUE, BLOCK = 8, 512, 64, 64, 96, 16
WIDTH = LATENT + ROPE


def engine(**other: Any) -> Any:
    """As much of an engine's configuration as is looked at."""
    asked = {
        "dtype": torch.bfloat16,
        "quant_config": None,
        "backend": None,
        "backend_per_kind": {},
        "cache_dtype": "auto",
        "v_head_dim": VALUE,
        "head_size": WIDTH,
    } | other
    text = SimpleNamespace(qk_nope_head_dim=PLAIN, v_head_dim=asked["v_head_dim"])
    return SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=asked["dtype"], hf_text_config=text, get_head_size=lambda: asked["head_size"]
        ),
        quant_config=asked["quant_config"],
        cache_config=SimpleNamespace(cache_dtype=asked["cache_dtype"]),
        attention_config=SimpleNamespace(
            backend=asked["backend"], backend_per_kind=asked["backend_per_kind"]
        ),
    )


def backend() -> Any:
    return REFERENCE.get_class()


def test_models_that_are_built_meanwhile_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[bool] = []
    monkeypatch.setattr(latent, "has_bfloat16_alone", lambda: True)
    monkeypatch.setattr(
        latent, "forget_attention_backends", lambda: forgotten.append(REFERENCE.is_overridden())
    )
    with latent_attention(engine()):
        assert backend() is LatentBackend
        assert backend().get_name() == REFERENCE.name
        assert forgotten == [True]
    assert backend() is CPUMLABackend
    assert forgotten == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": torch.float32},
        {"dtype": torch.float16},
        {"quant_config": object()},
        {"backend": REFERENCE},
        {"backend_per_kind": {"mla_attention": REFERENCE}},
        {"cache_dtype": "bfloat16"},
        {"v_head_dim": 48},
        {"head_size": 320},
    ],
)
def test_others_keep_vllms(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "has_bfloat16_alone", lambda: True)
    with latent_attention(engine(**other)):
        assert backend() is CPUMLABackend


@pytest.mark.parametrize(
    ("bfloat16", "amx", "cpu", "expected"),
    [
        (True, False, CpuArchEnum.X86, True),
        (True, True, CpuArchEnum.X86, False),
        (False, False, CpuArchEnum.X86, False),
        (True, False, CpuArchEnum.ARM, False),
        (True, False, None, False),  # the engine computes on a GPU
    ],
)
def test_it_is_for_cpus_with_bfloat16_and_no_amx(
    bfloat16: bool,
    amx: bool,
    cpu: CpuArchEnum | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    platform = SimpleNamespace(is_cpu=lambda: cpu is not None, get_cpu_architecture=lambda: cpu)
    monkeypatch.setattr(vllm_hooks, "current_platform", platform)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bfloat16_alone() is expected
    with latent_attention(engine()):
        assert (backend() is LatentBackend) is expected


def test_this_machine_is_seen_as_it_is() -> None:
    assert has_bfloat16_alone() is (current_platform.is_cpu() and bfloat16_alone())


def test_a_configuration_of_vllms_has_what_is_asked_for() -> None:
    config = VllmConfig()
    assert config.quant_config is None
    assert config.attention_config.backend is None
    assert not config.attention_config.backend_per_kind
    assert CacheConfig().cache_dtype == "auto"


def test_how_a_row_is_decoded_does_not_depend_on_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = SimpleNamespace(decode=SimpleNamespace(num_kv_splits=4), prefill=None)
    monkeypatch.setattr(AMXMLAMetadataBuilder, "build", lambda *_: built)
    builder = LatentMetadataBuilder.__new__(LatentMetadataBuilder)
    assert builder.build(0, None).decode.num_kv_splits == 1


def test_prompts_have_few_lengths() -> None:
    lengths = np.arange(1, 8193)
    filled = filled_lengths(lengths)
    assert (filled >= lengths).all()
    assert (filled - lengths <= np.maximum(15, lengths / 4)).all()
    assert np.unique(filled % 768).size <= 28  # what the kernel's blocks leave over, in its widest
    assert filled_lengths(np.array([16, 256, 320])).tolist() == [16, 256, 320]


def prompts(lengths: list[int]) -> Any:
    """As much of a step's metadata as the kernel is given, as vLLM builds it."""
    counts = torch.tensor(lengths)
    return SimpleNamespace(
        extend_seq_lens=counts,
        extend_start_loc=counts.cumsum(0) - counts,
        max_len_extend=max(lengths),
        cpu_seq_lens=counts.clone(),
        req_to_token=torch.zeros(len(lengths), max(lengths), dtype=torch.int64),
        req_pool_indices=torch.arange(len(lengths)),
    )


@needs_bfloat16_alone
@pytest.mark.parametrize("lengths", [[1], [64], [5, 16, 17, 100], [300, 3, 257]])
def test_reads_prompts_as_arithmetic_says(lengths: list[int]) -> None:
    current_platform.import_kernels()
    generator = torch.Generator().manual_seed(len(lengths))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    weight = draw(HEADS * (PLAIN + VALUE), LATENT) * LATENT**-0.5
    impl = bare()
    impl.kv_b_proj = SimpleNamespace(weight=weight, quant_method=None)
    impl.process_weights_after_loading(torch.bfloat16)
    count = sum(lengths)
    q, latents, k_pe = draw(count, HEADS, PLAIN + ROPE), draw(count, LATENT), draw(count, 1, ROPE)
    metadata, out = SimpleNamespace(prefill=prompts(lengths)), draw(count, HEADS * VALUE)
    fill_up(metadata.prefill)
    cache = torch.zeros(1, BLOCK, WIDTH, dtype=torch.bfloat16)
    impl.forward_mha(q, latents, k_pe, cache, metadata, torch.ones(1), out)
    of_heads = weight.double().view(HEADS, PLAIN + VALUE, LATENT)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        keys = torch.einsum("sl,hpl->hsp", latents[rows].double(), of_heads)
        roped = k_pe[rows].double().transpose(0, 1).expand(HEADS, -1, -1)
        scores = q[rows].double().transpose(0, 1) @ torch.cat(
            [keys[..., :PLAIN], roped], -1
        ).transpose(1, 2)
        masked = (scores * impl.scale).masked_fill(
            torch.ones(length, length).triu(1).bool(), -torch.inf
        )
        meant = (torch.softmax(masked, -1) @ keys[..., PLAIN:]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(out[rows].double(), meant, rtol=0.03, atol=0.03)
        start += length


def bare() -> Any:
    """vLLM's object without an engine around it."""
    impl = LatentImpl.__new__(LatentImpl)
    impl.head_size, impl.kv_lora_rank, impl.num_heads = WIDTH, LATENT, HEADS
    impl.qk_nope_head_dim, impl.qk_rope_head_dim, impl.v_head_dim = PLAIN, ROPE, VALUE
    impl.scale = (PLAIN + ROPE) ** -0.5
    return impl


@needs_bfloat16_alone
@pytest.mark.parametrize("lengths", [[1], [5, 16, 17, 100], [40] * 33, [1500, 3]])
def test_decodes_as_arithmetic_says(lengths: list[int]) -> None:
    """Blocks of the cache lie anywhere, and a row's bits do not depend on the others."""
    current_platform.import_kernels()
    generator = torch.Generator().manual_seed(len(lengths))
    blocks = [-(-length // BLOCK) for length in lengths]
    places = torch.randperm(sum(blocks) + 3, generator=generator).int()
    table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    for row, taken in enumerate(blocks):
        table[row, :taken], places = places[:taken], places[taken:]
    cache = torch.randn(sum(blocks) + 3, BLOCK, WIDTH, generator=generator).bfloat16()
    q = torch.randn(len(lengths), HEADS, WIDTH, generator=generator).bfloat16()
    impl = bare()

    def decode(rows: slice) -> torch.Tensor:
        decode = SimpleNamespace(
            seq_lens_i64=torch.tensor(lengths)[rows],
            req_to_token=(table[rows, :, None] * BLOCK + torch.arange(BLOCK)).int().flatten(1),
            req_pool_indices=torch.arange(len(lengths[rows])),
            num_kv_splits=1,
        )
        out: torch.Tensor
        out, _ = impl.forward_mqa(q[rows], cache, SimpleNamespace(decode=decode), None)
        return out

    whole = decode(slice(None))
    for row, length in enumerate(lengths):
        keys = cache[table[row].long()].flatten(0, 1)[:length].double()
        weights = torch.softmax(q[row].double() @ keys.T * impl.scale, -1)
        meant = weights @ keys[:, :LATENT]
        torch.testing.assert_close(whole[row].double(), meant, rtol=0.02, atol=0.02)
        assert torch.equal(decode(slice(row, row + 1))[0], whole[row])

"""Latent attention by kernels that vLLM has for AMX, where there is none: chosen, and right."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.platforms import current_platform
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

from services.attention import latent
from services.attention.latent import REFERENCE, LatentBackend, latent_attention, settle_weights
from services.vllm_hooks import has_bfloat16_alone
from tests.support.hardware import bfloat16_alone, needs_bfloat16_alone

HEADS, LATENT, ROPE, BLOCK = 8, 512, 64, 16


def engine(**other: Any) -> Any:
    """As much of an engine's configuration as is looked at."""
    asked = {"dtype": torch.bfloat16, "quant_config": None, "backend": None} | other
    return SimpleNamespace(
        model_config=SimpleNamespace(dtype=asked["dtype"]),
        quant_config=asked["quant_config"],
        attention_config=SimpleNamespace(backend=asked["backend"]),
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
    ],
)
def test_others_keep_vllms(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent, "has_bfloat16_alone", lambda: True)
    with latent_attention(engine(**other)):
        assert backend() is CPUMLABackend


@pytest.mark.parametrize(
    ("bfloat16", "amx", "expected"), [(True, False, True), (True, True, False), (False,) * 3]
)
def test_it_is_for_cpus_with_bfloat16_and_no_amx(
    bfloat16: bool, amx: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bfloat16_alone() is expected
    with latent_attention(engine()):
        assert (backend() is LatentBackend) is expected


def test_this_machine_is_seen_as_it_is() -> None:
    assert has_bfloat16_alone() is bfloat16_alone()


def test_weights_of_the_reference_lie_as_its_product_wants_them() -> None:
    layer = MLAAttention.__new__(MLAAttention)
    torch.nn.Module.__init__(layer)
    both = torch.randn(LATENT, HEADS, 128)
    for name, weight in (
        ("W_UV", both[..., 64:].transpose(0, 1)),
        ("W_UK_T", both[..., :64].permute(1, 2, 0)),
    ):
        layer.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
        assert not getattr(layer, name).is_contiguous()
    meant = [weight.clone() for weight in layer.parameters()]
    settle_weights(torch.nn.ModuleList([torch.nn.Linear(2, 2), layer]))
    for weight, value in zip(layer.parameters(), meant, strict=True):
        assert weight.is_contiguous()
        assert torch.equal(weight, value)


@needs_bfloat16_alone
@pytest.mark.parametrize("lengths", [[1], [5, 16, 17, 100], [40] * 33, [700, 3]])
def test_decodes_as_arithmetic_says(lengths: list[int]) -> None:
    """Blocks of the cache lie anywhere, and a row's bits do not depend on the others."""
    current_platform.import_kernels()
    generator = torch.Generator().manual_seed(len(lengths))
    blocks = [-(-length // BLOCK) for length in lengths]
    places = torch.randperm(sum(blocks) + 3, generator=generator).int()
    table = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    for row, taken in enumerate(blocks):
        table[row, :taken], places = places[:taken], places[taken:]
    width = LATENT + ROPE
    cache = torch.randn(sum(blocks) + 3, BLOCK, width, generator=generator).bfloat16()
    q = torch.randn(len(lengths), HEADS, width, generator=generator).bfloat16()

    def decode(rows: slice) -> torch.Tensor:
        decode = SimpleNamespace(
            seq_lens_i64=torch.tensor(lengths)[rows],
            req_to_token=(table[rows, :, None] * BLOCK + torch.arange(BLOCK)).int().flatten(1),
            req_pool_indices=torch.arange(len(lengths[rows])),
            num_kv_splits=1,
        )
        impl = LatentBackend.get_impl_cls().__new__(LatentBackend.get_impl_cls())
        impl.head_size, impl.kv_lora_rank, impl.num_heads = width, LATENT, HEADS
        impl.scale = width**-0.5
        out: torch.Tensor
        out, _ = impl.forward_mqa(q[rows], cache, SimpleNamespace(decode=decode), None)
        return out

    whole = decode(slice(None))
    for row, length in enumerate(lengths):
        keys = cache[table[row].long()].flatten(0, 1)[:length].double()
        weights = torch.softmax(q[row].double() @ keys.T * width**-0.5, -1)
        meant = weights @ keys[:, :LATENT]
        torch.testing.assert_close(whole[row].double(), meant, rtol=0.02, atol=0.02)
        assert torch.equal(decode(slice(row, row + 1))[0], whole[row])


def test_a_configuration_of_vllms_has_what_is_asked_for() -> None:
    config = VllmConfig()
    assert config.quant_config is None
    assert config.attention_config.backend is None

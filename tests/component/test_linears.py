"""Dense layers in bfloat16 by the kernel for small weights: where, and what it computes."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.platforms import current_platform

from services.attention import linears
from services.attention.linears import PackedHead, PackedLinear, pack_linears
from tests.support.hardware import needs_bfloat16_alone

OUTPUTS, INPUTS, ROWS = 48, 1056, 200  # the kernel takes inputs in blocks of 512


@pytest.fixture(autouse=True)
def _building() -> Iterator[None]:
    current_platform.import_kernels()
    torch.manual_seed(0)
    with set_current_vllm_config(VllmConfig()):
        yield


def engine(backend: str = "auto") -> Any:
    """As much of an engine's configuration as is looked at."""
    return SimpleNamespace(kernel_config=SimpleNamespace(linear_backend=backend))


def layer_of(kind: type[torch.nn.Module], outputs: int, inputs: int, dtype: torch.dtype) -> Any:
    """Without the constructors of vLLM's layers, which want process groups."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    return made


def linear(
    outputs: int = OUTPUTS, inputs: int = INPUTS, dtype: torch.dtype = torch.bfloat16
) -> Any:
    made = layer_of(LinearBase, outputs, inputs, dtype)
    made.quant_method = UnquantizedLinearMethod()
    return made


def head() -> Any:
    made = layer_of(ParallelLMHead, OUTPUTS, INPUTS, torch.bfloat16)
    made.quant_method = UnquantizedEmbeddingMethod()
    return made


def chosen(layer: torch.nn.Module, backend: str = "auto") -> type:
    pack_linears(torch.nn.ModuleList([layer]), engine(backend))
    return type(layer.quant_method)


def prepared(layer: Any) -> Callable[..., torch.Tensor]:
    """As vLLM prepares it, and calls it."""
    chosen(layer)
    method = layer.quant_method
    method.process_weights_after_loading(layer)
    return partial(method.apply, layer)


@needs_bfloat16_alone
def test_layers_and_heads_have_it() -> None:
    assert chosen(linear()) is PackedLinear
    assert chosen(head()) is PackedHead
    assert chosen(head(), "aiter") is UnquantizedEmbeddingMethod


@pytest.mark.parametrize(
    "layer",
    [
        lambda: linear(dtype=torch.float32),
        lambda: linear(dtype=torch.float16),
        lambda: linear(outputs=OUTPUTS + 8),
        lambda: linear(inputs=INPUTS + 16),
    ],
)
def test_other_layers_keep_vllms(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "has_bfloat16_alone", lambda: True)
    assert chosen(layer()) is UnquantizedLinearMethod


def test_so_does_one_whose_weight_latent_attention_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "has_bfloat16_alone", lambda: True)
    layer = linear()
    layer._cpu_skip_gemm_dispatch = True
    assert chosen(layer) is UnquantizedLinearMethod


def test_and_another_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a quantisation, which may be derived from the one for plain weights."""
    monkeypatch.setattr(linears, "has_bfloat16_alone", lambda: True)
    other, layer = type("Quantised", (UnquantizedLinearMethod,), {}), linear()
    layer.quant_method = other()
    assert chosen(layer) is other


def test_other_cpus_keep_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "has_bfloat16_alone", lambda: False)
    assert chosen(linear()) is UnquantizedLinearMethod
    assert chosen(head()) is UnquantizedEmbeddingMethod


@needs_bfloat16_alone
def test_a_layer_multiplies_and_adds_its_bias() -> None:
    layer, bias = linear(), torch.randn(OUTPUTS).bfloat16()
    weight, x = layer.weight.double(), torch.randn(5, 7, INPUTS).bfloat16()
    out = prepared(layer)(x, bias)
    expected = x.double() @ weight.t() + bias.double()
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-3)
    assert not layer.weight.numel()


@needs_bfloat16_alone
def test_rows_may_lie_apart() -> None:
    multiplied, wide = prepared(linear()), torch.randn(9, 2 * INPUTS).bfloat16()
    part = wide[:, INPUTS:]
    assert torch.equal(multiplied(part), multiplied(part.contiguous()))


@needs_bfloat16_alone
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_rows_bits_depend_on_nothing_else(threads: int) -> None:
    multiplied, x = prepared(linear()), torch.randn(ROWS, INPUTS).bfloat16()
    before = torch.get_num_threads()
    alone = torch.cat([multiplied(x[row : row + 1]) for row in range(ROWS)])
    torch.set_num_threads(threads)
    try:
        for size in (2, 4, 5, 16, 33, 128, ROWS):
            assert torch.equal(multiplied(x[:size]), alone[:size]), size
    finally:
        torch.set_num_threads(before)


@needs_bfloat16_alone
def test_a_head_keeps_its_words() -> None:
    layer, x = head(), torch.randn(3, INPUTS).bfloat16()
    before = layer.weight.clone()
    multiplied, words = prepared(layer), torch.tensor([0, 41])
    assert layer.packed_weight is None  # until it is a head
    out = multiplied(x)
    expected = x.double() @ before.double().t()
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-3)
    method = layer.quant_method
    assert torch.equal(method.embedding(layer, words), before[words])

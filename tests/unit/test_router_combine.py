"""Properties of adding up the answered rows."""

from collections.abc import Iterator

import pytest
import torch

from router import combine as combine_module
from router.combine import Sum, combine
from router.rows import as_array

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def some_rows(
    n_tokens: int, n_choices: int, hidden: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(n_tokens * n_choices, hidden, generator=generator).to(dtype)
    return rows, torch.rand(n_tokens, n_choices, generator=generator)


def summed(rows: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """As a layer has it: the sum is made before the rows are there."""
    like = torch.empty(weights.shape[0], rows.shape[1], dtype=rows.dtype)
    return Sum(like, weights).of(as_array(rows))


def added_one_by_one(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The definition, one token and one choice at a time."""
    n_tokens, n_choices = weights.shape
    out = torch.empty(n_tokens, rows.shape[1])
    for token in range(n_tokens):
        total = rows[token * n_choices].float() * weights[token, 0]
        for choice in range(1, n_choices):
            product = rows[token * n_choices + choice].float() * weights[token, choice]
            total = total + product
        out[token] = total
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_added_in_gate_order_in_float32(dtype: torch.dtype) -> None:
    rows, weights = some_rows(5, 8, 33, dtype)
    result = combine(rows, weights)
    assert result.dtype == torch.float32
    assert torch.equal(result, added_one_by_one(rows, weights))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_loop_and_torch_give_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weights = some_rows(64, 8, 511, dtype)
    assert rows.numel() <= combine_module.SMALL
    compiled = combine(rows, weights)
    monkeypatch.setattr(combine_module, "SMALL", 0)
    assert torch.equal(compiled, combine(rows, weights))


def test_order_of_choices_decides_the_bits() -> None:
    rows = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])
    assert combine(rows, torch.ones(1, 4)).item() == 1.0  # ((1e8 + 1) - 1e8) + 1 in float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 17, 2048, 4099])
def test_a_token_has_the_same_bits_in_any_batch_on_any_number_of_threads(
    threads: None, dtype: torch.dtype, hidden: int
) -> None:
    rows, weights = some_rows(37, 6, hidden, dtype)
    whole = combine(rows, weights)
    for start, stop in ((0, 1), (3, 4), (36, 37), (5, 21)):
        part = combine(rows[start * 6 : stop * 6], weights[start:stop])
        assert torch.equal(part, whole[start:stop])
    assert torch.equal(whole, added_one_by_one(rows, weights))


def test_agrees_with_the_dense_sum() -> None:
    rows, weights = some_rows(64, 8, 256, torch.float32)
    dense = torch.einsum("tkh,tk->th", rows.view(64, 8, 256).double(), weights.double())
    torch.testing.assert_close(combine(rows, weights).double(), dense, rtol=1e-5, atol=1e-5)


def test_no_tokens_give_an_empty_answer() -> None:
    assert combine(torch.empty(0, 16), torch.empty(0, 4)).shape == (0, 16)


def test_arguments_are_left_alone() -> None:
    rows, weights = some_rows(4, 2, 8, torch.float32)
    kept = rows.clone(), weights.clone()
    combine(rows, weights)
    assert torch.equal(rows, kept[0]) and torch.equal(weights, kept[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e38])
def test_rounded_at_once_it_has_the_same_bits(dtype: torch.dtype, scale: float) -> None:
    rows, weights = some_rows(64, 8, 511, torch.float32)
    rows = (rows * scale).to(dtype)
    rounded, is_finite = summed(rows, weights)
    total = combine(rows, weights)
    assert torch.equal(rounded, total.to(dtype)) or not is_finite
    assert is_finite == bool(total.isfinite().all())


def test_halves_are_rounded_to_even() -> None:
    bits = torch.arange(0x3F80_0000, 0x3F80_0000 + (1 << 18), 1 << 14, dtype=torch.int32)
    weights = bits.view(torch.float32)[:, None]  # between two bfloat16: a quarter, a half, three
    rounded, _ = summed(torch.ones(len(bits), 1, dtype=torch.bfloat16), weights)
    assert torch.equal(rounded, weights.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_strange_number_is_noticed(dtype: torch.dtype, value: float) -> None:
    rows, weights = some_rows(3, 2, 40, dtype)
    assert summed(rows, weights)[1] is True
    rows[3, 7] = value
    rounded, is_finite = summed(rows, weights)
    assert is_finite is False
    assert int((~rounded.isfinite()).sum()) == 1

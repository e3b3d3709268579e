"""RMS normalisation by vLLM's kernels for CPUs: right, with a row's own bits, and chosen."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from vllm import ir

from router.errors import EngineError
from services import vllm_hooks
from services.attention import norms
from services.attention.engine_args import PROVIDER, own_operators

EPSILON = 1e-6
TYPES = (torch.bfloat16, torch.float16, torch.float32)
OPERATORS = (ir.ops.rms_norm, ir.ops.fused_add_rms_norm)


@pytest.fixture(autouse=True)
def _first() -> Iterator[None]:
    """As in an engine that was given our operators."""
    norms.register()
    told = own_operators()["ir_op_priority"]
    with ExitStack() as stack:
        for operator in OPERATORS:
            stack.enter_context(operator.set_priority([*told[operator.name], "native"]))
        yield


def rows(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(count, width, generator=generator).to(dtype)


def meant(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In 64 bits."""
    wide = x.double()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON) * weight.double()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [8, 64, 512, 7168])
def test_normalises_rows_that_lie_apart_too(dtype: torch.dtype, width: int) -> None:
    """Latent attention normalises parts of rows."""
    weight, wider = rows(1, width, dtype)[0], rows(5, width + 8, dtype)
    for x in (wider[:, :width].contiguous(), wider[:, :width], wider[:4, :width].view(2, 2, -1)):
        assert ir.ops.rms_norm.dispatch(x, weight, EPSILON).provider == PROVIDER
        out = ir.ops.rms_norm(x, weight, EPSILON)
        torch.testing.assert_close(out, meant(x, weight).to(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_adds_and_normalises(dtype: torch.dtype) -> None:
    x, residual, weight = rows(5, 512, dtype), 3 * rows(5, 512, dtype), rows(1, 512, dtype)[0]
    total = x.float() + residual.float()
    chosen = ir.ops.fused_add_rms_norm.dispatch(x, residual, weight, EPSILON)
    out, added = ir.ops.fused_add_rms_norm.maybe_inplace(x, residual, weight, EPSILON)
    assert chosen.provider == PROVIDER
    torch.testing.assert_close(added, total.to(dtype))
    torch.testing.assert_close(out, meant(total, weight).to(dtype), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", TYPES)
def test_bits_of_a_row_do_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, residual, weight = rows(33, 512, dtype), rows(33, 512, dtype), rows(1, 512, dtype)[0]
    whole = ir.ops.rms_norm(x, weight, EPSILON)
    both = ir.ops.fused_add_rms_norm(x, residual, weight, EPSILON)[0]
    for row in (0, 7, 32):
        one = slice(row, row + 1)
        assert torch.equal(ir.ops.rms_norm(x[one], weight, EPSILON), whole[one])
        alone = ir.ops.fused_add_rms_norm(x[one], residual[one], weight, EPSILON)[0]
        assert torch.equal(alone, both[one])


@pytest.mark.parametrize(
    ("width", "weight_type"), [(100, torch.float32), (64, torch.bfloat16), (64, None)]
)
def test_what_the_kernels_do_not_take_is_torchs(
    width: int, weight_type: torch.dtype | None
) -> None:
    x = rows(3, width, torch.float32)
    weight = None if weight_type is None else rows(1, width, weight_type)[0]
    assert ir.ops.rms_norm.dispatch(x, weight, EPSILON).provider == "native"
    assert ir.ops.fused_add_rms_norm.dispatch(x, x, weight, EPSILON).provider == "native"


def test_sums_of_rows_that_lie_apart_are_torchs() -> None:
    x, weight = rows(3, 128, torch.float32)[:, :64], rows(1, 64, torch.float32)[0]
    both = (x, x.contiguous()), (x.contiguous(), x)
    for first, second in both:
        chosen = ir.ops.fused_add_rms_norm.dispatch(first, second, weight, EPSILON)
        assert chosen.provider == "native"


def test_another_kernel_is_named_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_hooks.check_vllm()
    for name in ("rms_norm", "no_kernel"):
        monkeypatch.setitem(vllm_hooks.EXPECTED_KERNELS, name, ["result"])
        with pytest.raises(EngineError, match=rf"{vllm_hooks.VLLM_VERSION}.*_C.{name}\('result',"):
            vllm_hooks.check_vllm()

"""RMS normalisation by the kernels that vLLM 0.32 has for CPUs and does not choose there.

vLLM computes it with a dozen calls of torch, a tenth of a decoding step and a third of one that
reads prompts. The kernels round once, after the weight, as on GPUs. A row's bits do not depend on
the others. Given to vLLM as implementations of its operators under a name of ours
(`vllm.ir.ops`, public), which the engine argument `ir_op_priority` puts first.
"""

import torch
from vllm import ir
from vllm.platforms import current_platform

from services.attention.engine_args import PROVIDER

LANES = 8  # numbers; the kernels take whole vectors of them


def register() -> None:
    """Make them known to vLLM in this process if it computes on a CPU; once is enough."""
    if not current_platform.is_cpu() or PROVIDER in ir.ops.rms_norm.impls:
        return
    current_platform.import_kernels()
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes)(rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_both, inplace=True)(
        fused_add_rms_norm
    )


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """x [..., H] over its root mean square, times weight [H]; both of one type, as the result."""
    x = x.contiguous()  # the kernel takes one row after the other whatever the strides
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of x and x_residual [..., H] normalised, and the sum; both in their arguments."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _takes(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return (
        weight is not None
        and variance_size is None
        and weight.dtype == x.dtype
        and weight.numel() % LANES == 0
    )


def _takes_both(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return (
        _takes(x, weight, epsilon, variance_size)
        and x_residual.dtype == x.dtype
        and x.is_contiguous()
        and x_residual.is_contiguous()
    )

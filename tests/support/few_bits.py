"""Numbers in few bits, in the formats of well-known checkpoints, by the simplest way there is.

The largest value of each group decides its scale. What is returned beside the stored tensors are
the values that they stand for, in float32.
"""

import torch
from torch import Tensor

E4M3_MAX, E2M1_MAX, UINT4_MAX, INT8_MAX = 448.0, 6.0, 15, 127
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E8M0_BIAS = 127
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
LEAST = 1e-12  # that a scale is made of


def to_e4m3(
    weight: Tensor, *, is_power_of_two: bool = False, block: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """A byte each and a scale for each block of 128 x 128: bytes, scales float32, values.

    is_power_of_two: the scales.
    """
    (rows, columns), padded = weight.shape, torch.nn.functional.pad
    whole = padded(weight, (0, -columns % block, 0, -rows % block))
    blocks = whole.view(whole.shape[0] // block, block, whole.shape[1] // block, block)
    scale = (blocks.abs().amax((1, 3)) / E4M3_MAX).clamp(min=LEAST)
    if is_power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (stored.float() * scale[:, None, :, None]).reshape(whole.shape)
    stored = stored.reshape(whole.shape)[:rows, :columns].contiguous()
    return stored, scale, values[:rows, :columns].contiguous()


def to_e2m1(weight: Tensor, group: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Half a byte each and a power of two for each 32 of the last dimension (MXFP4).

    Returns [..., n / 2] uint8, the first number in the lower half; [..., n / 32] uint8; values.
    """
    groups = weight.reshape(*weight.shape[:-1], -1, group)
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=LEAST)
    exponent = torch.ceil(torch.log2(largest / E2M1_MAX))
    scaled = groups * torch.exp2(-exponent)
    code = (scaled.abs()[..., None] - E2M1).abs().argmin(-1)
    values = torch.copysign(E2M1[code], scaled) * torch.exp2(exponent)
    halves = (code + 8 * (scaled < 0)).to(torch.uint8)
    packed = halves[..., 0::2] | (halves[..., 1::2] << 4)
    scales = (exponent.squeeze(-1) + E8M0_BIAS).to(torch.uint8)
    return packed.flatten(-2), scales, values.flatten(-2)


def to_awq(weight: Tensor, group: int = 128) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half a byte each, zero point and scale for each 128 inputs; weight: [out, in].

    Returns numbers [in, out / 8] and zero points [in / 128, out / 8], both int32, scales bfloat16,
    values.
    """
    groups = weight.t().reshape(-1, group, weight.shape[0])
    least, most = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scale = ((most - least) / UINT4_MAX).clamp(min=LEAST).bfloat16().float()
    zero = (-least / scale).round().clamp(0, UINT4_MAX)
    numbers = (groups / scale[:, None] + zero[:, None]).round().clamp(0, UINT4_MAX)
    values = ((numbers - zero[:, None]) * scale[:, None]).flatten(0, 1).t().contiguous()
    return _eight_to_one(numbers.flatten(0, 1)), _eight_to_one(zero), scale.bfloat16(), values


def _eight_to_one(numbers: Tensor) -> Tensor:
    """[..., n] from 0 to 15 → [..., n / 8] int32, in AWQ's order."""
    eights = numbers.view(numbers.shape[0], -1, 8)[..., AWQ_ORDER].long()
    packed = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A byte each and a scale for each row: bytes, scales [out, 1] float32, values."""
    scale = (weight.abs().amax(1, keepdim=True) / INT8_MAX).clamp(min=LEAST)
    numbers = (weight / scale).round()
    return numbers.to(torch.int8), scale, numbers * scale

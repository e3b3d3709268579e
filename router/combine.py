"""Adding up what the shards answered; step 8 of a token's life.

The order of the sum is fixed by the gate, never by who answered first or where an expert was, so
placement, failover and rebalancing cannot change a bit of the output.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from router.jit import jit
from router.rows import Rows, as_array, as_tensor

EXPONENT = np.int32(0x7F800000)  # of a float32; all ones: infinity, or not a number
SMALL = 1 << 18  # numbers; a compiled loop is quicker up to there, torch's threads beyond


def combine(rows: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """Weigh and add each token's K rows in gate order, in float32.

    rows: [T * K, H] float32, bfloat16 or float16, any device; row t * K + k answers choice k.
    topk_weights: [T, K] float32, same device.
    Returns [T, H] float32. A token's bits do not depend on T, on the other tokens or on the
    number of threads: every product and every sum is one rounded elementwise operation. They
    are kept apart because a fused multiply-add may be used for some lanes and not for others.
    """
    n_tokens, n_choices = topk_weights.shape
    if rows.device.type == "cpu" and rows.numel() <= SMALL:
        out = torch.empty(n_tokens, rows.shape[-1])
        _add_up(rows.float().contiguous().numpy(), topk_weights.contiguous().numpy(), out.numpy())
        return out
    by_choice = rows.view(n_tokens, n_choices, rows.shape[-1])
    total = torch.mul(by_choice[:, 0], topk_weights[:, :1])
    product = torch.empty_like(total)
    for choice in range(1, n_choices):
        torch.mul(by_choice[:, choice], topk_weights[:, choice : choice + 1], out=product)
        total.add_(product)
    return total


class Sum:
    """As `combine`, of rows on the host; rounded to their dtype, on the weights' device.

    Made while the rows are awaited, so that after them one compiled loop is left to do.
    """

    def __init__(self, like: torch.Tensor, topk_weights: torch.Tensor) -> None:
        """like: [T, H] of the rows' dtype; topk_weights: [T, K] float32, same device."""
        self._weights, dtype = topk_weights, like.dtype
        self._add_up = _add_up_bfloat16 if dtype is torch.bfloat16 else _add_up
        self._is_compiled = like.is_cpu and (
            dtype is torch.bfloat16
            or (dtype is torch.float32 and like.numel() * topk_weights.shape[1] <= SMALL)
        )
        if self._is_compiled:
            self._out = torch.empty(like.shape, dtype=dtype)
            self._rounded, self._gate = as_array(self._out), topk_weights.contiguous().numpy()

    def of(self, rows: Rows) -> tuple[torch.Tensor, bool]:
        """rows: [T * K, H] → [T, H], the same memory each time, and whether all of it is finite.

        That may be False if they are too many for a compiled loop and only too large to be added.
        """
        if self._is_compiled:
            return self._out, self._add_up(rows, self._gate, self._rounded)
        on_device = as_tensor(rows).to(self._weights.device, non_blocking=True)
        total = combine(on_device, self._weights)
        return total.to(on_device.dtype), math.isfinite(float(total.sum()))


def warm_up() -> None:
    """Compile the loops."""
    for dtype in (np.float32, np.uint16):
        like = as_tensor(np.zeros((1, 1), dtype))
        Sum(like, torch.ones(1, 1)).of(as_array(like))


@jit
def _add_up_bfloat16(
    rows: NDArray[np.uint16], weights: NDArray[np.float32], out: NDArray[np.uint16]
) -> bool:
    """Bits of bfloat16, rows [T * K, H], weights [T, K] → out [T, H]; whether all are finite.

    A bfloat16 is the upper half of a float32; the way back rounds to nearest, ties to even.
    """
    row = np.empty(rows.shape[1], np.float32)
    total = np.empty(rows.shape[1], np.float32)
    row_bits, total_bits = row.view(np.int32), total.view(np.int32)
    largest = np.int32(0)
    for t in range(weights.shape[0]):
        for k in range(weights.shape[1]):
            weight, place = weights[t, k], t * weights.shape[1] + k
            for h in range(rows.shape[1]):
                row_bits[h] = np.int32(rows[place, h]) << 16
            if k == 0:
                for h in range(rows.shape[1]):
                    total[h] = row[h] * weight
            else:
                for h in range(rows.shape[1]):
                    total[h] += row[h] * weight
        for h in range(rows.shape[1]):
            largest = max(largest, total_bits[h] & EXPONENT)
        for h in range(rows.shape[1]):
            bits = total_bits[h]
            out[t, h] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bool(largest < EXPONENT)


@jit
def _add_up(
    rows: NDArray[np.float32], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> bool:
    """rows [T * K, H], weights [T, K] → out [T, H]; whether all are finite.

    numba fuses no multiply with an addition.
    """
    out_bits = out.view(np.int32)
    largest = np.int32(0)
    for t in range(weights.shape[0]):
        first = t * weights.shape[1]
        weight = weights[t, 0]
        for h in range(rows.shape[1]):
            out[t, h] = rows[first, h] * weight
        for k in range(1, weights.shape[1]):
            weight = weights[t, k]
            for h in range(rows.shape[1]):
                out[t, h] += rows[first + k, h] * weight
        for h in range(rows.shape[1]):
            largest = max(largest, out_bits[t, h] & EXPONENT)
    return bool(largest < EXPONENT)

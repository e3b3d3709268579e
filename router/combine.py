"""Adding up what the shards answered; step 8 of a token's life.

The order of the sum is fixed by the gate, never by who answered first or where an expert was, so
placement, failover and rebalancing cannot change a bit of the output.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from router.jit import jit
from router.rows import Rows, as_tensor

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
    by_choice = rows.view(n_tokens, n_choices, rows.shape[-1])
    if rows.device.type == "cpu" and rows.numel() <= SMALL:
        out = torch.empty(n_tokens, rows.shape[-1])
        _add_up(by_choice.float().numpy(), topk_weights.contiguous().numpy(), out.numpy())
        return out
    total = torch.mul(by_choice[:, 0], topk_weights[:, :1])
    product = torch.empty_like(total)
    for choice in range(1, n_choices):
        torch.mul(by_choice[:, choice], topk_weights[:, choice : choice + 1], out=product)
        total.add_(product)
    return total


def combine_like(rows: Rows, topk_weights: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """As `combine`, of rows on the host, where the weights are; rounded to the dtype of `rows`.

    Also whether every number of it is finite, which may be False if they are too many for a
    compiled loop and only too large to be added up.
    """
    n_tokens, n_choices = topk_weights.shape
    if topk_weights.device.type == "cpu" and (
        rows.dtype == np.uint16 or (rows.dtype == np.float32 and rows.size <= SMALL)
    ):
        out = np.empty((n_tokens, rows.shape[1]), rows.dtype)
        add_up = _add_up if rows.dtype == np.float32 else _add_up_bfloat16
        by_choice = rows.reshape(n_tokens, n_choices, rows.shape[1])
        return as_tensor(out), add_up(by_choice, topk_weights.contiguous().numpy(), out)
    on_device = as_tensor(rows).to(topk_weights.device, non_blocking=True)
    total = combine(on_device, topk_weights)
    return total.to(on_device.dtype), math.isfinite(float(total.sum()))


def warm_up() -> None:
    """Compile the loops."""
    for dtype in (np.float32, np.uint16):
        combine_like(np.zeros((1, 1), dtype), torch.ones(1, 1))


@jit
def _add_up_bfloat16(
    rows: NDArray[np.uint16], weights: NDArray[np.float32], out: NDArray[np.uint16]
) -> bool:
    """Bits of bfloat16, rows [T, K, H], weights [T, K] → out [T, H]; whether all are finite.

    A bfloat16 is the upper half of a float32; the way back rounds to nearest, ties to even.
    """
    row = np.empty(rows.shape[2], np.float32)
    total = np.empty(rows.shape[2], np.float32)
    row_bits, total_bits = row.view(np.int32), total.view(np.int32)
    largest = np.int32(0)
    for t in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            weight = weights[t, k]
            for h in range(rows.shape[2]):
                row_bits[h] = np.int32(rows[t, k, h]) << 16
            if k == 0:
                for h in range(rows.shape[2]):
                    total[h] = row[h] * weight
            else:
                for h in range(rows.shape[2]):
                    total[h] += row[h] * weight
        for h in range(rows.shape[2]):
            largest = max(largest, total_bits[h] & EXPONENT)
        for h in range(rows.shape[2]):
            bits = total_bits[h]
            out[t, h] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bool(largest < EXPONENT)


@jit
def _add_up(
    rows: NDArray[np.float32], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> bool:
    """rows [T, K, H], weights [T, K] → out [T, H]; whether all are finite.

    numba fuses no multiply with an addition.
    """
    out_bits = out.view(np.int32)
    largest = np.int32(0)
    for t in range(rows.shape[0]):
        weight = weights[t, 0]
        for h in range(rows.shape[2]):
            out[t, h] = rows[t, 0, h] * weight
        for k in range(1, rows.shape[1]):
            weight = weights[t, k]
            for h in range(rows.shape[2]):
                out[t, h] += rows[t, k, h] * weight
        for h in range(rows.shape[2]):
            largest = max(largest, out_bits[t, h] & EXPONENT)
    return bool(largest < EXPONENT)

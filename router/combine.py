"""Adding up what the shards answered; step 8 of a token's life.

The order of the sum is fixed by the gate, never by who answered first or where an expert was, so
placement, failover and rebalancing cannot change a bit of the output.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from router.jit import jit

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


def warm_up() -> None:
    """Compile the loop."""
    combine(torch.zeros(1, 1), torch.ones(1, 1))


@jit
def _add_up(
    rows: NDArray[np.float32], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """rows [T, K, H], weights [T, K] → out [T, H]; numba fuses no multiply with an addition."""
    for t in range(rows.shape[0]):
        weight = weights[t, 0]
        for h in range(rows.shape[2]):
            out[t, h] = rows[t, 0, h] * weight
        for k in range(1, rows.shape[1]):
            weight = weights[t, k]
            for h in range(rows.shape[2]):
                out[t, h] += rows[t, k, h] * weight

"""Adding up what the shards answered; step 8 of a token's life.

The order of the sum is fixed by the gate, never by who answered first or where an expert was, so
placement, failover and rebalancing cannot change a bit of the output.
"""

import torch


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
    total = torch.mul(by_choice[:, 0], topk_weights[:, :1])
    product = torch.empty_like(total)
    for choice in range(1, n_choices):
        torch.mul(by_choice[:, choice], topk_weights[:, choice : choice + 1], out=product)
        total.add_(product)
    return total

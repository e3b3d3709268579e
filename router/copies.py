"""How many replicas each expert of a layer should have; `placement` then seats them."""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WORTH_IT = 1.1  # a held replica goes only if another expert's replicas carry 10 % more


@jit
def copies_wanted(weights: Floats, held: Ints, least: int, most: int, seats: int) -> Ints:
    """[E] replicas of each expert: `least`, and the rest of the seats by heaviest replica.

    held: [E] replicas in place; they are kept unless another expert needs a seat 10 % more.
    Source: greedy of deepseek-ai/EPLB `replicate_experts`; keeping what is held is ours.
    """
    copies = held.copy()
    total = 0
    for e in range(copies.size):
        copies[e] = min(max(copies[e], least), most)
        total += copies[e]
    while True:
        needy, spare = -1, -1
        for e in range(weights.size):
            if copies[e] < most and (
                needy < 0 or weights[e] * copies[needy] > weights[needy] * copies[e]
            ):
                needy = e
            if copies[e] > least and (
                spare < 0 or weights[e] * (copies[spare] - 1) < weights[spare] * (copies[e] - 1)
            ):
                spare = e
        if total < seats and needy >= 0:
            copies[needy] += 1
            total += 1
        elif total > seats:
            copies[spare] -= 1
            total -= 1
        elif (
            needy >= 0
            and spare >= 0
            and weights[needy] * (copies[spare] - 1) > _WORTH_IT * weights[spare] * copies[needy]
        ):
            copies[needy] += 1
            copies[spare] -= 1
        else:
            return copies

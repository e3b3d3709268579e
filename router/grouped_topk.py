"""Which experts a token chooses within its best groups of experts; step 3 of a token's life."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.jit import jit


class Gate(NamedTuple):
    """How a layer chooses. A group is E / n_groups neighbouring experts."""

    n_groups: int
    n_kept: int  # groups that experts are chosen of
    is_biased: bool  # a group counts by its best two experts together; else by its best one
    renormalises: bool  # weights add up to `factor`
    factor: np.float32


def warm_up() -> None:
    """Compile the loop."""
    gate = Gate(1, 1, False, False, np.float32(1))
    scores, bias = np.zeros((1, 2), np.float32), np.zeros(2, np.float32)
    grouped_topk(scores, bias, gate, np.empty((1, 1), np.float32), np.empty((1, 1), np.int32))


@jit
def grouped_topk(
    scores: NDArray[np.float32],
    bias: NDArray[np.float32],
    gate: Gate,
    weights: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> None:
    """Fill weights and ids [T, K] from scores [T, E], the best first; of equals the lower id.

    bias: [E], added to choose by and not to weigh with. K is at most what the kept groups have. A
    token that has scores which are not numbers still gets K different experts.
    Source: DeepSeek-V2 (arXiv 2405.04434, device-limited routing), DeepSeek-V3 (arXiv 2412.19437,
    node-limited routing and the bias).
    """
    by = np.empty(scores.shape[1], np.float32)
    for t in range(scores.shape[0]):
        for e in range(by.size):
            by[e] = scores[t, e] + bias[e]
        _choose(by, _kept_groups(by, gate), ids[t])
        total = np.float32(0)
        for k in range(ids.shape[1]):
            weights[t, k] = scores[t, ids[t, k]]
            total += weights[t, k]
        for k in range(ids.shape[1]):
            if gate.renormalises:
                weights[t, k] /= total
            weights[t, k] *= gate.factor


@jit
def _choose(by: NDArray[np.float32], is_kept: NDArray[np.bool_], ids: NDArray[np.int32]) -> None:
    """The best of the kept groups, by insertion into those found so far."""
    best, n_found = np.empty(ids.size, np.float32), 0
    size = by.size // is_kept.size
    for e in range(by.size):
        if not is_kept[e // size] or (n_found == ids.size and not by[e] > best[-1]):
            continue
        n_found = min(n_found + 1, ids.size)
        k = n_found - 1
        while k > 0 and by[e] > best[k - 1]:
            best[k], ids[k] = best[k - 1], ids[k - 1]
            k -= 1
        best[k], ids[k] = by[e], e


@jit
def _kept_groups(by: NDArray[np.float32], gate: Gate) -> NDArray[np.bool_]:
    worth = np.empty(gate.n_groups, np.float32)
    size = by.size // gate.n_groups
    for g in range(gate.n_groups):
        worth[g] = _worth(by[g * size : (g + 1) * size], gate.is_biased)
    is_kept = np.zeros(gate.n_groups, np.bool_)
    for _ in range(gate.n_kept):
        best = -1
        for g in range(gate.n_groups):
            if not is_kept[g] and (best < 0 or worth[g] > worth[best]):
                best = g
        is_kept[best] = True
    return is_kept


@jit
def _worth(by: NDArray[np.float32], of_two: bool) -> np.float32:
    first, second = np.float32(-np.inf), np.float32(-np.inf)
    for value in by:
        if value > first:
            first, second = value, first
        elif value > second:
            second = value
    return first + second if of_two else first

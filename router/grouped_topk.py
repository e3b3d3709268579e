"""Which experts a token chooses within its best groups of experts; step 3 of a token's life."""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit


def warm_up() -> None:
    """Compile the loop."""
    scores, bias = np.zeros((1, 2), np.float32), np.zeros(2, np.float32)
    weights, ids = np.empty((1, 1), np.float32), np.empty((1, 1), np.int32)
    grouped_topk(scores, bias, False, 1, 1, False, np.float32(1), weights, ids)


@jit
def grouped_topk(
    scores: NDArray[np.float32],
    bias: NDArray[np.float32],
    is_biased: bool,
    n_groups: int,
    n_kept: int,
    renormalises: bool,
    factor: np.float32,
    weights: NDArray[np.float32],
    ids: NDArray[np.int32],
) -> None:
    """Fill weights and ids [T, K] from scores [T, E], the best first; of equals the lower id.

    bias: [E], added to choose by and not to weigh with. A group of E / n_groups neighbours counts
    by its best expert, with a bias by its best two together; K experts of the `n_kept` best groups
    are chosen. A token that has scores which are not numbers still gets K different experts.
    Source: DeepSeek-V2 (arXiv 2405.04434, device-limited routing), DeepSeek-V3 (arXiv 2412.19437,
    node-limited routing and the bias).
    """
    n_experts, n_chosen = scores.shape[1], ids.shape[1]
    size = n_experts // n_groups
    by = np.empty(n_experts, np.float32)
    of_group = np.empty(n_groups, np.float32)
    best = np.empty(n_chosen, np.float32)
    for t in range(scores.shape[0]):
        for e in range(n_experts):
            by[e] = scores[t, e] + bias[e]
        for g in range(n_groups):
            of_group[g] = _worth(by[g * size : (g + 1) * size], is_biased)
        is_kept = np.zeros(n_groups, np.bool_)
        for _ in range(n_kept):
            is_kept[_best_other(of_group, is_kept)] = True
        n_found = 0
        for e in range(n_experts):
            if not is_kept[e // size] or (n_found == n_chosen and not by[e] > best[n_chosen - 1]):
                continue
            n_found = min(n_found + 1, n_chosen)
            k = n_found - 1
            while k > 0 and by[e] > best[k - 1]:
                best[k], ids[t, k] = best[k - 1], ids[t, k - 1]
                k -= 1
            best[k], ids[t, k] = by[e], e
        total = np.float32(0)
        for k in range(n_chosen):
            weights[t, k] = scores[t, ids[t, k]]
            total += weights[t, k]
        for k in range(n_chosen):
            if renormalises:
                weights[t, k] /= total
            weights[t, k] *= factor


@jit
def _worth(by: NDArray[np.float32], is_biased: bool) -> np.float32:
    first, second = np.float32(-np.inf), np.float32(-np.inf)
    for value in by:
        if value > first:
            first, second = value, first
        elif value > second:
            second = value
    return first + second if is_biased and by.size > 1 else first


@jit
def _best_other(of_group: NDArray[np.float32], is_taken: NDArray[np.bool_]) -> int:
    best = -1
    for g in range(of_group.size):
        if not is_taken[g] and (best < 0 or of_group[g] > of_group[best]):
            best = g
    return best

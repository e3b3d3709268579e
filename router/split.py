"""Compiled loops behind `choose`: how many rows of each expert go to each of its holders.

Works on counts, not on rows: rows of one expert are alike, so a layer is a small transport
problem, experts × holders. `choose` calls `assign`, which turns counts back into rows.
"""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit
from router.pour import polish, pour_all, round_shares

LEAST_TOKENS = 0
ONE_REPLICA = 1
EVEN_SPLIT = 2

_VISITS = 640  # experts poured again at most per call


@jit
def _one_replica(
    rows: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    total: NDArray[np.float64],
    whole: NDArray[np.int32],
) -> None:
    """All rows of an expert to its lightest holder; single holders first, then rows falling."""
    order = np.argsort(-rows, kind="mergesort")
    for singles in (True, False):
        for expert in order:
            if rows[expert] == 0 or (counts[expert] == 1) != singles:
                continue
            best = 0
            for i in range(1, counts[expert]):
                if total[holders[expert, i]] < total[holders[expert, best]]:
                    best = i
            whole[expert, best] = rows[expert]
            total[holders[expert, best]] += rows[expert]


@jit
def _hand_out(
    ids: NDArray[np.int32],
    holders: NDArray[np.int16],
    whole: NDArray[np.int32],
    out: NDArray[np.int16],
) -> None:
    """Give each row the first holder of its expert that still has a share; uses `whole` up."""
    cursor = np.zeros(whole.shape[0], np.int32)
    for p in range(ids.size):
        expert = ids[p]
        i = cursor[expert]
        while whole[expert, i] == 0:
            i += 1
        cursor[expert] = i
        whole[expert, i] -= 1
        out[p] = holders[expert, i]


@jit
def _rotate(
    ids: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    out: NDArray[np.int16],
) -> None:
    """The k-th row of an expert to holder k modulo their number."""
    cursor = np.zeros(counts.size, np.int32)
    for p in range(ids.size):
        expert = ids[p]
        i = cursor[expert]
        out[p] = holders[expert, i]
        cursor[expert] = i + 1 if i + 1 < counts[expert] else 0


@jit
def assign(
    ids: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    load: NDArray[np.float32],
    policy: int,
    out: NDArray[np.int16],
) -> int:
    """Fill `out` with a shard for each row; returns -1, or the first id that has no holder.

    ids: [P] int32; holders: [E, R] int16; counts: [E] int16; load: [S] float32; out: [P] int16.
    """
    n_experts = counts.size
    rows = np.zeros(n_experts, np.int32)
    for p in range(ids.size):
        expert = ids[p]
        if expert < 0 or expert >= n_experts or counts[expert] < 1:
            return p
        rows[expert] += 1
    if policy == EVEN_SPLIT:
        _rotate(ids, holders, counts, out)
        return -1
    whole = np.zeros(holders.shape, np.int32)
    if policy == ONE_REPLICA:
        _one_replica(rows, holders, counts, load.astype(np.float64), whole)
    else:
        shares = np.zeros(holders.shape, np.float64)
        pour_all(rows, holders, counts, load.astype(np.float64), shares, _VISITS)
        total = load.astype(np.float64)
        round_shares(rows, holders, counts, total, shares, whole)
        polish(rows, holders, counts, total, whole)
    _hand_out(ids, holders, whole, out)
    return -1

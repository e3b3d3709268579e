"""Compiled loops behind `split`: the least possible maximum load, approached in bounded time.

`pour_all` finds fractional shares of each expert's rows, `round_shares` makes them whole,
`polish` mends what rounding left.
"""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit

_POLISH_SWEEPS = 2
_SETTLED_ROWS = 0.25  # a sweep that moves no more than this anywhere ends the sweeps


@jit
def _pour(
    expert: int,
    rows: float,
    holders: NDArray[np.int16],
    n_holders: int,
    total: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> float:
    """Spread `rows` over the holders so that the emptiest rise to one level, like water.

    Takes the expert's earlier shares out of `total` first; returns the largest change of a share.
    """
    order = np.empty(n_holders, np.int64)
    for i in range(n_holders):
        total[holders[expert, i]] -= shares[expert, i]
        j = i
        while j > 0 and total[holders[expert, order[j - 1]]] > total[holders[expert, i]]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    level, below = 0.0, 0.0
    for wet in range(1, n_holders + 1):
        below += total[holders[expert, order[wet - 1]]]
        level = (below + rows) / wet
        if wet == n_holders or level <= total[holders[expert, order[wet]]]:
            break
    largest = 0.0
    for i in range(n_holders):
        shard = holders[expert, i]
        share = max(level - total[shard], 0.0)
        largest = max(largest, abs(share - shares[expert, i]))
        shares[expert, i] = share
        total[shard] += share
    return largest


@jit
def _pour_pair(
    expert: int,
    rows: float,
    holders: NDArray[np.int16],
    total: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> float:
    """`_pour` for two holders, the common case, in closed form."""
    first, second = holders[expert, 0], holders[expert, 1]
    apart = (total[second] - shares[expert, 1]) - (total[first] - shares[expert, 0])
    share = min(max(0.5 * (rows + apart), 0.0), rows)
    change = share - shares[expert, 0]
    total[first] += change
    total[second] += rows - share - shares[expert, 1]
    shares[expert, 0] = share
    shares[expert, 1] = rows - share
    return float(abs(change))


@jit
def pour_all(
    rows: NDArray[np.int32] | NDArray[np.float64],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    total: NDArray[np.float64],
    shares: NDArray[np.float64],
    visits: int,
) -> None:
    """Fractional shares that approach the least possible maximum of `total`.

    Pouring one expert at a time is block descent on the sum of squared loads, a convex function;
    on these polytopes its minimum also has the least maximum. Single holders go first. visits:
    experts poured again at most, but two sweeps are made; bounds the time (~25 ns each).
    """
    several = np.empty(rows.size, np.int64)
    n_several = 0
    for expert in range(rows.size):
        if rows[expert] == 0:
            continue
        if counts[expert] == 1:
            total[holders[expert, 0]] += rows[expert]
            shares[expert, 0] = rows[expert]
        else:
            several[n_several] = expert
            n_several += 1
    for _ in range(max(visits // max(n_several, 1), 2)):
        largest = 0.0
        for i in range(n_several):
            expert = several[i]
            if counts[expert] == 2:
                change = _pour_pair(expert, rows[expert], holders, total, shares)
            else:
                change = _pour(expert, rows[expert], holders, counts[expert], total, shares)
            largest = max(largest, change)
        if largest <= _SETTLED_ROWS:
            break


@jit
def pour_layers(
    loads: NDArray[np.float64],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    per_shard: NDArray[np.float64],
    visits: int,
) -> None:
    """`pour_all` for every layer of a table: loads [L, E] onto `per_shard` [L, S], from zero."""
    for layer in range(loads.shape[0]):
        shares = np.zeros(holders.shape[1:], np.float64)
        pour_all(loads[layer], holders[layer], counts[layer], per_shard[layer], shares, visits)


@jit
def round_shares(
    rows: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    total: NDArray[np.float64],
    shares: NDArray[np.float64],
    whole: NDArray[np.int32],
) -> None:
    """Whole shares near the fractional ones; what rounding leaves goes to the lightest holders."""
    for expert in range(rows.size):
        if rows[expert] > 0:
            for i in range(counts[expert]):
                whole[expert, i] = np.int32(shares[expert, i] + 1e-6)
                total[holders[expert, i]] += whole[expert, i]
    for expert in range(rows.size):
        left = rows[expert]
        if left > 0:
            for i in range(counts[expert]):
                left -= whole[expert, i]
        for _ in range(left):
            best = 0
            for i in range(1, counts[expert]):
                if total[holders[expert, i]] < total[holders[expert, best]]:
                    best = i
            whole[expert, best] += 1
            total[holders[expert, best]] += 1.0


@jit
def polish(
    rows: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    total: NDArray[np.float64],
    whole: NDArray[np.int32],
) -> None:
    """Move single rows from heavier to lighter holders while that shrinks the gap."""
    for _ in range(_POLISH_SWEEPS):
        moved = False
        for expert in range(rows.size):
            if rows[expert] == 0 or counts[expert] < 2:
                continue
            lightest = 0
            for i in range(1, counts[expert]):
                if total[holders[expert, i]] < total[holders[expert, lightest]]:
                    lightest = i
            for i in range(counts[expert]):
                gap = total[holders[expert, i]] - total[holders[expert, lightest]]
                if whole[expert, i] > 0 and gap > 1.0:
                    whole[expert, i] -= 1
                    whole[expert, lightest] += 1
                    total[holders[expert, i]] -= 1.0
                    total[holders[expert, lightest]] += 1.0
                    moved = True
        if not moved:
            break

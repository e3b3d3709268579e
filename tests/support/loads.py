"""Loads with the skew and drift that real routers show, and the best split that they allow.

Source: the log-normal generator is ours, fitted to published DeepSeek-V3 counts.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

Floats = NDArray[np.float64]
Holders = NDArray[np.int16]


def drifted(
    rng: np.random.Generator, n_experts: int, *, sigma: float = 0.7, correlation: float = 0.85
) -> tuple[Floats, Floats]:
    """Two log-normal popularities [E]: the one a placement saw and the one that comes later."""
    seen, fresh = rng.normal(size=(2, n_experts))
    later = correlation * seen + np.sqrt(1 - correlation**2) * fresh
    return np.exp(sigma * seen), np.exp(sigma * later)


def draw_tokens(
    rng: np.random.Generator, popularity: Floats, n_tokens: int, n_choices: int
) -> NDArray[np.int64]:
    """[T, K] distinct experts a token: top-k of log popularity with Gumbel noise."""
    scores = np.log(popularity) + rng.gumbel(size=(n_tokens, popularity.size))
    chosen = np.argpartition(-scores, n_choices - 1, axis=1)[:, :n_choices]
    return np.ascontiguousarray(chosen, dtype=np.int64)


def least_maximum(
    rows: NDArray[np.integer] | Floats, holders: Holders, counts: NDArray[np.int16], load: Floats
) -> float:
    """Least possible maximum over shards of load + rows, if rows could be cut (linear programme).

    rows: [E]; holders: [E, R]; counts: [E]; load: [S].
    """
    pairs = [(e, int(s)) for e in np.flatnonzero(rows) for s in holders[e, : counts[e]]]
    expert_of, shard_of = np.array(pairs).T
    n, n_shards = len(pairs), load.size
    columns = np.arange(n)
    on_shard = coo_array((np.ones(n), (shard_of, columns)), shape=(n_shards, n + 1))
    level = coo_array(
        (np.full(n_shards, -1.0), (np.arange(n_shards), np.full(n_shards, n))),
        shape=(n_shards, n + 1),
    )
    needed, row_of = np.unique(expert_of, return_inverse=True)
    served = coo_array((np.ones(n), (row_of, columns)), shape=(needed.size, n + 1))
    solved = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=(on_shard + level).tocsr(),
        b_ub=-load,
        A_eq=served.tocsr(),
        b_eq=rows[needed],
        method="highs",
    )
    return float(solved.fun)

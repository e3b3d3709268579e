"""How much each expert is asked for, and how unevenly that falls on the shards.

Pure: a window is a value, and the caller says what time it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.choose import Policy
from router.pour import pour_layers

_SWEEPS = 20  # of pouring, when a split is predicted and not hurried


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """Rows per expert, where a row counts half as much `half_life_s` later."""

    half_life_s: float
    as_of_s: float  # the time at which `rows` was right
    rows: NDArray[np.float64]  # [L, E], read-only


def empty_window(
    n_layers: int, n_experts: int, *, half_life_s: float, now_s: float = 0.0
) -> LoadWindow:
    """A window that has seen nothing. half_life_s: > 0."""
    return _frozen(half_life_s, now_s, np.zeros((n_layers, n_experts)))


def observe(window: LoadWindow, counts: NDArray[np.integer], *, now_s: float) -> LoadWindow:
    """The window after `counts` [L, E] rows more, which all count as of `now_s`."""
    as_of_s = max(window.as_of_s, now_s)
    return _frozen(window.half_life_s, as_of_s, loads_at(window, now_s=as_of_s) + counts)


def loads_at(window: LoadWindow, *, now_s: float) -> NDArray[np.float64]:
    """[L, E] float64 decayed rows. A clock that ran backwards decays nothing."""
    age_s = max(now_s - window.as_of_s, 0.0)
    kept_ratio: float = 0.5 ** (age_s / window.half_life_s)
    return window.rows * kept_ratio


def shard_loads(
    loads: NDArray[np.float64],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    *,
    n_shards: int,
    policy: Policy = Policy.EVEN_SPLIT,
) -> NDArray[np.float64]:
    """[L, n_shards] load of each shard under the policy by which replicas are chosen.

    loads: [L, E]; holders: [L, E, R] int16; counts: [L, E] int16. An expert without a holder
    loads nobody. ONE_REPLICA counts as LEAST_TOKENS: over many batches rows spread as with it.
    """
    n_layers, n_experts, widest = holders.shape
    total = np.zeros((n_layers, n_shards))
    if policy is not Policy.EVEN_SPLIT:
        rows = np.array(loads, dtype=np.float64, order="C")
        pour_layers(rows, holders, counts, total, _SWEEPS * n_experts)
        return total
    used = np.arange(widest) < counts[..., None]
    share = loads / np.maximum(counts, 1)
    cells = np.arange(n_layers)[:, None, None] * n_shards + np.where(used, holders, 0)
    weights = np.where(used, share[..., None], 0.0)
    np.add.at(total.reshape(-1), cells.ravel(), weights.ravel())
    return total


def imbalance(
    loads: NDArray[np.float64],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    *,
    n_shards: int | None = None,
    policy: Policy = Policy.EVEN_SPLIT,
) -> NDArray[np.float64]:
    """[L] maximum over mean load of the shards; 1 is perfect, also with no load.

    As `shard_loads`. n_shards: None counts up to the highest index.
    """
    if n_shards is None:
        n_shards = int(holders.max(initial=0)) + 1
    return max_over_mean(shard_loads(loads, holders, counts, n_shards=n_shards, policy=policy))


def max_over_mean(per_shard: NDArray[np.float64]) -> NDArray[np.float64]:
    """per_shard [L, S] → [L], 1 where there is no load."""
    mean = per_shard.mean(axis=1)
    return np.where(mean > 0, per_shard.max(axis=1) / np.where(mean > 0, mean, 1.0), 1.0)


def _frozen(half_life_s: float, as_of_s: float, rows: NDArray[np.float64]) -> LoadWindow:
    rows.setflags(write=False)
    return LoadWindow(half_life_s, as_of_s, rows)

"""How much each expert is asked for, and how unevenly that falls on the shards.

Pure: a window is a value, and the caller says what time it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
) -> NDArray[np.float64]:
    """[L, n_shards] load of each shard if every expert's rows split evenly over its holders.

    loads: [L, E]; holders: [L, E, R] int16; counts: [L, E] int16. An expert without a holder
    loads nobody.
    """
    n_layers, _, widest = holders.shape
    used = np.arange(widest) < counts[..., None]
    share = loads / np.maximum(counts, 1)
    cells = np.arange(n_layers)[:, None, None] * n_shards + np.where(used, holders, 0)
    weights = np.where(used, share[..., None], 0.0)
    total = np.zeros(n_layers * n_shards)
    np.add.at(total, cells.ravel(), weights.ravel())
    return total.reshape(n_layers, n_shards)


def imbalance(
    loads: NDArray[np.float64],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    *,
    n_shards: int | None = None,
) -> NDArray[np.float64]:
    """[L] maximum over mean load of the shards, split evenly; 1 is perfect, also with no load.

    loads, holders, counts: as in `shard_loads`. n_shards: None counts up to the highest index.
    """
    if n_shards is None:
        n_shards = int(holders.max(initial=0)) + 1
    per_shard = shard_loads(loads, holders, counts, n_shards=n_shards)
    mean = per_shard.mean(axis=1)
    return np.where(mean > 0, per_shard.max(axis=1) / np.where(mean > 0, mean, 1.0), 1.0)


def _frozen(half_life_s: float, as_of_s: float, rows: NDArray[np.float64]) -> LoadWindow:
    rows.setflags(write=False)
    return LoadWindow(half_life_s, as_of_s, rows)

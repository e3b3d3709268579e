"""How busy each shard seems, in rows, from how long it took lately; an input to `choose`."""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit

_NEW_SHARE = 0.05  # weight of the newest layer in the running means


class ServiceTimes:
    """One table's shards as one attention worker sees them.

    A shard that takes longer for its rows than the quickest that was asked, because it is slow or
    works for others too, counts as having the difference waiting. With that load added, rows that
    are levelled by `choose` settle where all shards take equally long.
    """

    def __init__(self, n_shards: int) -> None:
        self._excess_rows = np.zeros(n_shards)
        self._load = np.zeros(n_shards, np.float32)
        self._s_per_row = 0.0

    def observe(self, times: NDArray[np.float64]) -> None:
        """One layer, [2, S]: seconds that each shard queued and computed, rows it was sent.

        0 rows: it was not asked; what is held against it fades.
        """
        self._s_per_row = _observe(self._excess_rows, self._s_per_row, times, self._load)

    def load(self) -> NDArray[np.float32]:
        """[S] float32 rows to count as outstanding; the least busy shard has 0. To be read only."""
        return self._load


def warm_up() -> None:
    """Compile the loop."""
    ServiceTimes(1).observe(np.ones((2, 1)))


@jit
def _observe(
    excess_rows: NDArray[np.float64],
    s_per_row: float,
    times: NDArray[np.float64],
    load: NDArray[np.float32],
) -> float:
    """Bring `excess_rows` and `load` [S] up to date; returns the new mean of seconds per row."""
    total_s = n_rows = 0.0
    for shard in range(excess_rows.size):
        total_s += times[0, shard]
        n_rows += times[1, shard]
    if n_rows == 0.0:
        return s_per_row
    mean = total_s / n_rows
    known = s_per_row if s_per_row > 0.0 else mean
    known += _NEW_SHARE * (mean - known)
    if known <= 0.0:
        return known
    least = np.inf
    for shard in range(excess_rows.size):
        if times[1, shard] > 0.0:
            least = min(least, times[0, shard] / known - times[1, shard])
    for shard in range(excess_rows.size):
        excess = 0.0
        if times[1, shard] > 0.0:
            excess = times[0, shard] / known - times[1, shard] - least
        excess_rows[shard] += _NEW_SHARE * (excess - excess_rows[shard])
    load[:] = excess_rows - excess_rows.min()
    return known

"""What one shard tells of its work, in the metrics' names."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitoring.metric import PREFIX
from monitoring.totals import Account, Key, number

LAYER_ROWS: Key = ("layer_rows_of_a_shard",)
"""[L] rows computed for each layer; no metric, but what the imbalance is worked out from."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Totals since the start."""

    rows: int = 0
    batches: int = 0
    queued_s: float = 0.0  # over requests
    computed_s: float = 0.0
    loaded: int = 0  # experts
    load_s: float = 0.0
    read_bytes: int = 0


def shard_account(
    source: str,
    age_s: float,
    stats: WorkerStats,
    layer_rows: NDArray[np.int64],
    held: NDArray[np.int32],
) -> Account:
    """layer_rows: [L]; held: [L, S] the expert in each slot, -1 for none."""
    counts = {
        "shard_rows_total": stats.rows,
        "shard_batches_total": stats.batches,
        "shard_queue_seconds_total": stats.queued_s,
        "shard_compute_seconds_total": stats.computed_s,
        "shard_loads_total": stats.loaded,
        "shard_load_seconds_total": stats.load_s,
        "shard_read_bytes_total": stats.read_bytes,
    }
    totals: dict[Key, NDArray[np.float64]] = {
        (PREFIX + name,): number(count) for name, count in counts.items()
    }
    totals[LAYER_ROWS] = layer_rows.astype(np.float64)
    used = int(np.count_nonzero(held >= 0))
    slots = f"{PREFIX}shard_slots"
    return Account(
        "shard",
        source,
        age_s,
        totals,
        {(slots, "used"): number(used), (slots, "free"): number(held.size - used)},
    )

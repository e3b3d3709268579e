"""What one attention worker has counted since its start; plain numbers, once a layer or a send."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitoring.meter import Histogram
from monitoring.metric import PREFIX
from monitoring.totals import Key, number
from router.jit import jit
from services.attention.layer_times import LayerTimes

EXPERT_ROWS: Key = (f"{PREFIX}expert_rows_total",)


@dataclass(slots=True)
class Traffic:
    """Used by the thread that runs the model; `totals` also between its steps."""

    began_s: float = field(default_factory=time.monotonic)
    seconds: Histogram = field(default_factory=lambda: Histogram(f"{PREFIX}dispatch_seconds"))
    expert_rows: NDArray[np.int64] | None = None  # [L, E] pairs that the gate gave to each expert
    activated: NDArray[np.int64] | None = None  # [L] experts with a row, over all batches
    batches: NDArray[np.int64] | None = None  # [L]
    sends: int = 0
    rows_sent: int = 0
    bytes_sent: int = 0
    rows_returned: int = 0
    bytes_returned: int = 0
    row_s: float = 0.0  # rows awaited, times the seconds
    resends: int = 0
    late_answers: int = 0
    refused: int = 0
    lost: int = 0  # shards
    wrong: int = 0  # shards

    def count(self, layer: int, ids: NDArray[np.int32], shape: tuple[int, int]) -> None:
        """Add one layer's choices, ids [T, K]. shape: layers and experts of the model."""
        if self.expert_rows is None or self.activated is None or self.batches is None:
            self.expert_rows = np.zeros(shape, np.int64)
            self.activated, self.batches = np.zeros((2, shape[0]), np.int64)
        self.activated[layer] += _add_rows(self.expert_rows, layer, ids)
        self.batches[layer] += 1

    def totals(self, times: LayerTimes) -> dict[Key, NDArray[np.float64]]:
        """As the controller adds them up."""
        counts: dict[Key, float] = {
            ("dispatch_stage_seconds_total", "choose"): times.choose_s,
            ("dispatch_stage_seconds_total", "send"): times.send_s,
            ("dispatch_stage_seconds_total", "shared"): times.shared_s,
            ("dispatch_stage_seconds_total", "wait"): times.wait_s,
            ("dispatch_stage_seconds_total", "combine"): times.combine_s,
            ("dispatch_shard_seconds_total", "queue"): times.shard_queue_s,
            ("dispatch_shard_seconds_total", "compute"): times.shard_compute_s,
            ("dispatch_rows_total", "sent"): self.rows_sent,
            ("dispatch_rows_total", "returned"): self.rows_returned,
            ("dispatch_bytes_total", "sent"): self.bytes_sent,
            ("dispatch_bytes_total", "returned"): self.bytes_returned,
            ("dispatch_row_seconds_total",): self.row_s,
            ("dispatch_sends_total",): self.sends,
            ("dispatch_resends_total",): self.resends,
            ("dispatch_late_answers_total",): self.late_answers,
            ("dispatch_refused_total",): self.refused,
            ("dispatch_shards_lost_total", "lost"): self.lost,
            ("dispatch_shards_lost_total", "wrong"): self.wrong,
        }
        totals = {(PREFIX + name, *labels): number(n) for (name, *labels), n in counts.items()}
        totals[f"{PREFIX}dispatch_seconds",] = self.seconds.totals()
        if self.expert_rows is not None and self.activated is not None and self.batches is not None:
            totals[EXPERT_ROWS] = self.expert_rows.astype(np.float64)
            totals[f"{PREFIX}layer_activated_experts_total",] = self.activated.astype(np.float64)
            totals[f"{PREFIX}layer_steps_total",] = self.batches.astype(np.float64)
        return totals


def warm_up() -> None:
    """Compile the loop."""
    Traffic().count(0, np.zeros((1, 1), np.int32), (1, 1))


@jit
def _add_rows(expert_rows: NDArray[np.int64], layer: int, ids: NDArray[np.int32]) -> int:
    """Add a layer's choices [T, K] to expert_rows [L, E]; how many experts have any."""
    rows, is_activated = expert_rows[layer], np.zeros(expert_rows.shape[1], np.bool_)
    for t in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            rows[ids[t, k]] += 1
            is_activated[ids[t, k]] = True
    return int(is_activated.sum())

"""What the controller can tell of everybody: the totals of all processes, and its own state."""

import time
from collections.abc import Iterable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from monitoring.metric import PREFIX
from monitoring.snapshot import Snapshot
from monitoring.totals import Account, Key, Ledger, Values, number
from router.control import ControlState
from router.load import LoadWindow, empty_window, loads_at, max_over_mean, observe
from router.members import ShardState
from router.planning import ASKED, LOADS_CHANGED, MEMBERS_CHANGED, Placed
from services.attention.traffic import EXPERT_ROWS
from services.experts.account import LAYER_ROWS
from services.messages import ShardReport, ShardStatus

CAUSES = (MEMBERS_CHANGED, LOADS_CHANGED, ASKED)
MAX_PUBLISHED = 1000  # tables whose time is remembered
STATES = ("serving", "loading", "empty", "suspected")
Numbers = dict[Key, NDArray[np.float64]]


class ControllerMetrics:
    """Hears every report; `snapshot` tells what is known. Times are of the monotonic clock."""

    def __init__(self, *, half_life_s: float, silent_s: float, now_s: float) -> None:
        """silent_s: after which a process that says nothing has no series any more."""
        self._half_life_s = half_life_s
        self._silent_s = silent_s
        self._ledger = Ledger(now_s)
        self._began_unix_s = time.time()
        self._shard_rows: dict[str, LoadWindow] = {}  # shard → [1, L] rows lately
        self._published_s: dict[int, float] = {}  # table version → when it was published
        self._looked_s = now_s
        self._was_complete = False
        for name in ("degraded_seconds", "unavailable_seconds", "placement_moves"):
            self._ledger.count((f"{PREFIX}{name}_total",), 0.0)
        for cause, outcome in product(CAUSES, ("accepted", "refused")):
            self._ledger.count((f"{PREFIX}placements_total", cause, outcome), 0.0)
        for kind in ("shard", "replica", "gateway"):
            self._ledger.count((f"{PREFIX}process_starts_total", kind), 0.0)

    def add(self, account: Account | None, now_s: float) -> NDArray[np.int64] | None:
        """Take a process's account in; returns [L, E] rows routed since its last one, if any."""
        if account is None:
            return None
        grown = self._ledger.add(account, now_s)
        if account.kind == "shard" and LAYER_ROWS in grown:
            rows = grown[LAYER_ROWS].astype(np.int64)[None]
            window = self._shard_rows.get(account.source)
            if window is None:
                window = empty_window(*rows.shape, half_life_s=self._half_life_s, now_s=now_s)
            self._shard_rows[account.source] = observe(window, rows, now_s=now_s)
        routed = grown.get(EXPERT_ROWS)
        return routed.astype(np.int64) if routed is not None and routed.any() else None

    def placed(self, placed: Placed) -> None:
        """A placement was judged."""
        outcome = "accepted" if placed.decision.accepted else "refused"
        self._ledger.count((f"{PREFIX}placements_total", placed.job.cause, outcome))
        if placed.decision.accepted:
            self._ledger.count((f"{PREFIX}placement_moves_total",), placed.decision.n_moves)

    def tick(self, state: ControlState, now_s: float) -> None:
        """Let time pass: how long experts were missing, and who is no longer heard."""
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        self._ledger.leave(now_s - self._silent_s)
        for source in [s for s in self._shard_rows if self._ledger.place("shard", s) is None]:
            del self._shard_rows[source]
        table = state.table
        if table is None:
            return
        if table.version not in self._published_s:
            self._published_s[table.version] = now_s
            for version in list(self._published_s)[:-MAX_PUBLISHED]:
                del self._published_s[version]
        fewest = table.redundancy() if state.members.live() else 0
        self._was_complete |= fewest > 0
        if self._was_complete and fewest < state.settings.placer.redundancy:
            self._ledger.count((f"{PREFIX}degraded_seconds_total",), passed_s)
        if self._was_complete and fewest == 0:
            self._ledger.count((f"{PREFIX}unavailable_seconds_total",), passed_s)

    def snapshot(
        self,
        state: ControlState,
        shards: Iterable[tuple[ShardReport, ShardStatus]],
        now_s: float,
    ) -> Snapshot:
        """All that is known. shards: those that are heard of."""
        values: Numbers = {k: v for k, v in self._ledger.totals.items() if k != LAYER_ROWS}
        rows = values.get(EXPERT_ROWS)
        if rows is not None:
            values[f"{PREFIX}layer_rows_total",] = rows.sum(axis=1)
        values |= self._ledger.states()
        values |= self._of_shards(shards)
        values |= self._of_tables(state, now_s)
        placer = state.settings.placer
        values |= {
            (f"{PREFIX}controller_start_time_seconds",): number(self._began_unix_s),
            (f"{PREFIX}moves_left",): number(state.placer.moves_left),
            (f"{PREFIX}redundancy_target",): number(placer.redundancy),
            (f"{PREFIX}shards_wanted",): number(state.placer.expected),
        }
        live = state.members.live().values()
        values |= self._imbalance(live, now_s)
        return Snapshot(values, state.placer.loads(now_s))

    def _of_shards(self, shards: Iterable[tuple[ShardReport, ShardStatus]]) -> Numbers:
        values: Numbers = {(f"{PREFIX}shards", state): number(0) for state in STATES}
        for report, status in shards:
            values[f"{PREFIX}shards", status.state] += 1
            place = self._ledger.place("shard", status.shard_id)
            if place is not None:
                values[f"{PREFIX}shard_info", place, status.shard_id, status.host] = number(1)
                values[f"{PREFIX}shard_resident_bytes", place] = number(report.resident_bytes)
                values[f"{PREFIX}shard_weight_bytes", place] = number(report.weight_bytes)
        return values

    def _of_tables(self, state: ControlState, now_s: float) -> Numbers:
        if state.table is None:
            return {}
        counts, wanted = state.table.counts, state.settings.placer.redundancy
        if not state.members.live():  # nobody is there to publish an empty table for
            counts = np.zeros_like(counts)
        values: Numbers = {
            (f"{PREFIX}expert_replicas",): counts.astype(np.float64),
            (f"{PREFIX}layer_replicas_min",): counts.min(axis=1).astype(np.float64),
            (f"{PREFIX}experts_without_replica",): number(int((counts == 0).sum())),
            (f"{PREFIX}experts_below_redundancy",): number(int((counts < wanted).sum())),
            (f"{PREFIX}table_version", "controller"): number(state.table.version),
        }
        for replica_id, version in state.readers.items():
            place = self._ledger.place("replica", replica_id)
            if place is not None:
                next_s = self._published_s.get(version + 1, now_s)
                values[f"{PREFIX}table_version", f"attention-{place}"] = number(version)
                values[f"{PREFIX}table_behind_seconds", place] = number(now_s - next_s)
        return values

    def _imbalance(self, live: Iterable[ShardState], now_s: float) -> Values:
        """Of the shards that may be sent rows; 1 without traffic."""
        windows = [self._shard_rows.get(s.address.shard_id) for s in live]
        rows = [loads_at(w, now_s=now_s)[0] for w in windows if w is not None]
        if not rows:
            return {}
        return {(f"{PREFIX}layer_imbalance_ratio",): max_over_mean(np.stack(rows, axis=1))}

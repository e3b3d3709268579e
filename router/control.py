"""The controller's decisions: reports go in, a table and orders come out; no Ray, no clock.

Shards say what they hold, attention replicas which table they use, which shards they lost and
what the gate asked for. The state is rebuilt from those reports alone, so a controller that comes
back needs no memory. What slots should hold is `placer`'s matter, who is there is `members`'.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.load import imbalance
from router.members import Members, ShardState
from router.moves import Exclusion, LoadExpert, Reconciliation, reconcile, settled
from router.orders import servable
from router.placer import Placer, PlacerSettings
from router.planning import Placed, PlacementJob
from router.table import ReplicaTable, ShardAddress, ShardId, table_of

log = logging.getLogger(__name__)

MAX_LOADS_PER_SHARD = 64  # orders at once; a shard works on one layer of them at a time
REST_RATIO = 19.0  # a shard that serves spends a twentieth of its time on loading at most,
REPAIR_REST_RATIO = 4.0  # a fifth while an expert has too few replicas, all while one has none
MAX_HISTORY = 100  # tables remembered, to know what every reader leaves out

Slots = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The operator's choices that the controller needs."""

    placer: PlacerSettings
    lease_s: float  # silence after which a shard counts as dead
    step_interval_s: float = 0.0  # reports within it are dealt with together


@dataclass(frozen=True, slots=True)
class Orders:
    """The answer to a shard's report."""

    loads: tuple[LoadExpert, ...] = ()
    rest_ratio: float = 0.0  # rest after a load, if rows were served meanwhile, by its duration
    expelled: str = ""  # why it must end; empty: it may stay
    may_leave: bool = False  # one that was told to stop: nobody needs it any more
    wanted_shards: int = 0  # how many there should be; 0: not known, or not to be changed
    is_settled: bool = False  # nothing is under way; what comes next can wait for seconds


class ControlState:
    """Feed it reports and the time; ask it for the table, for orders and for placements."""

    def __init__(self, settings: ControlSettings) -> None:
        self.settings = settings
        self.members = Members()
        self.placer = Placer(settings.placer)
        self.readers: dict[str, int] = {}  # attention replica → table version it uses
        self.table: ReplicaTable | None = None
        self.n_experts = 0
        self._missing = "shards"
        self._first_s: float | None = None
        self._is_dirty = False
        self._stepped_s = float("-inf")
        self._history: list[tuple[int, frozenset[Exclusion]]] = []
        self._orders: dict[ShardId, tuple[LoadExpert, ...]] = {}
        self._version = 0
        self._spare: frozenset[ShardId] = frozenset()  # leaving shards that are left out of tables
        self._left_out: dict[ShardId, int] = {}  # of those: the first table without it

    @property
    def waiting_for(self) -> str:
        """Why not every expert can be used; empty if all is well."""
        if self.table is not None and self.table.is_complete and self.members.live():
            return ""
        return self.placer.waiting_for or self._missing

    def on_shard(
        self,
        address: ShardAddress,
        *,
        n_experts: int,
        held: Slots,
        loading: tuple[LoadExpert, ...],
        now_s: float,
        is_leaving: bool = False,
    ) -> Orders:
        """A shard's report; returns what it should load besides what it says it is loading.

        is_leaving: it was told to stop; when it may, it is forgotten.
        """
        shard_id = address.shard_id
        if shard_id in self.members.expelled:
            return Orders(expelled=self.members.expelled[shard_id])
        self._first_s = now_s if self._first_s is None else self._first_s
        self.n_experts = n_experts
        self._is_dirty |= self.members.report(address, held, loading, now_s=now_s)
        if is_leaving:
            self._is_dirty |= self.members.leave(shard_id)
        self.step(now_s)
        if is_leaving and self._may_leave(shard_id):
            self.members.dismiss(shard_id)
            return Orders(may_leave=True)
        orders = self._orders.pop(shard_id, ())
        if orders:
            self.members.shards[shard_id].loading = (*loading, *orders)
        return Orders(orders, self._rest_ratio())

    def on_reader(
        self,
        replica_id: str,
        table_version: int,
        lost: Mapping[ShardId, str],
        *,
        now_s: float,
        wrong: Mapping[ShardId, str] | None = None,
        expert_rows: NDArray[np.int64] | None = None,
    ) -> None:
        """An attention replica's report. lost: could not be reached; wrong: answered nonsense."""
        if table_version:  # one that is starting uses no table, and its first is the newest
            self._is_dirty |= self.readers.get(replica_id) != table_version
            self.readers[replica_id] = table_version
        self._version = max(self._version, table_version)  # after a restart: go on above it
        for shard_id, reason in lost.items():
            self._is_dirty |= self.members.suspect(
                shard_id, by=replica_id, reason=reason, now_s=now_s
            )
        for shard_id, reason in (wrong or {}).items():
            self._is_dirty |= self.members.expel(shard_id, by=replica_id, reason=reason)
        if expert_rows is not None:
            self.placer.observe(expert_rows, now_s)
        self.step(now_s)

    def _may_leave(self, shard_id: ShardId) -> bool:
        """Whether every reader's table does without it, or all are leaving."""
        if all(state.is_leaving for state in self.members.shards.values()):
            return True
        if self.table is None or shard_id in {a.shard_id for a in self.table.shards}:
            self._left_out.pop(shard_id, None)
            return False
        since = self._left_out.setdefault(shard_id, self.table.version)
        return min(self.readers.values(), default=since) >= since

    def _unneeded(self, live: Mapping[ShardId, ShardState]) -> frozenset[ShardId]:
        """The leaving shards, once the others have every expert as often as there is room for."""
        staying = self.members.staying()
        leaving = live.keys() - staying.keys()
        if not leaving or not staying or self.placer.last is None:
            return frozenset()
        excluded = self._history[-1][1] if self._history else frozenset()
        slots = {s: state.slots for s, state in staying.items()}
        offered = servable(slots, excluded, n_experts=self.n_experts)
        wanted = min(self.settings.placer.redundancy, self.placer.last.redundancy)
        enough = wanted > 0 and bool((offered.sum(axis=0) >= wanted).all())
        return frozenset(leaving) if enough else frozenset()

    def _rest_ratio(self) -> float:
        if self.table is None or not self.table.is_complete:
            return 0.0
        is_short = self.table.redundancy() < self.settings.placer.redundancy
        is_draining = any(state.is_leaving for state in self.members.shards.values())
        return REPAIR_REST_RATIO if is_short or is_draining else REST_RATIO

    def forget_reader(self, replica_id: str) -> None:
        """An attention replica is gone; nobody waits for it to adopt a table."""
        self.readers.pop(replica_id, None)
        self._is_dirty = True

    def imbalance(self, now_s: float) -> float | None:
        """Max over mean load of the table's shards, mean over layers; None without traffic."""
        loads, table = self.placer.loads(now_s), self.table
        if loads is None or table is None or loads.shape != table.counts.shape:
            return None
        policy = self.settings.placer.policy
        return float(
            imbalance(
                loads, table.holders, table.counts, n_shards=len(table.shards), policy=policy
            ).mean()
        )

    def placement_due(self, now_s: float, *, move_cost_rows: float = 0.0) -> PlacementJob | None:
        """A placement that should be made now; `on_placed` takes its outcome."""
        return self.placer.due(self.members, self.n_experts, now_s, move_cost_rows=move_cost_rows)

    def on_placed(self, placed: Placed, now_s: float) -> None:
        """The outcome of the job."""
        if self.placer.take(placed, self.members, now_s):
            self._is_dirty, self._stepped_s = True, float("-inf")
            self.step(now_s)

    def step(self, now_s: float) -> None:
        """Let time pass: leases end, the table and the orders follow what is held."""
        if now_s - self._stepped_s < self.settings.step_interval_s:
            return
        self._stepped_s = now_s
        self._is_dirty |= bool(self.members.expire(self.settings.lease_s, now_s=now_s))
        everyone = self.members.live()
        spare = self._unneeded(everyone)
        self._is_dirty |= spare != self._spare
        self._spare = spare
        live = {s: state for s, state in everyone.items() if s not in spare}
        if not live:
            self._missing = f"shards: 0 of {self.placer.expected} have reported"
            self._orders = {}
        elif self._is_dirty or self.table is None:
            self._is_dirty = False
            self.placer.count_moves(live, now_s)
            plan = self._reconcile(live)
            self._orders = plan.loads_by_shard()
            self._publish(live, plan.exclusions, now_s)

    def _reconcile(self, live: Mapping[ShardId, ShardState]) -> Reconciliation:
        oldest = min(self.readers.values(), default=self._version)
        return reconcile(
            {s: t for s, t in self.placer.target.items() if s in live},
            {s: state.slots for s, state in live.items()},
            redundancy=self.settings.placer.redundancy,
            excluded=self._history[-1][1] if self._history else frozenset(),
            settled=settled(self._history, oldest_in_use=oldest),
            max_loads_per_shard=MAX_LOADS_PER_SHARD,
        )

    def _publish(
        self, live: Mapping[ShardId, ShardState], exclusions: frozenset[Exclusion], now_s: float
    ) -> None:
        """Make a new table if what can be used has changed; the first one only when it is due."""
        offered = servable(
            {s: state.slots for s, state in live.items()}, exclusions, n_experts=self.n_experts
        )
        addresses = tuple(state.address for state in live.values())
        table = table_of(self._version + 1, addresses, offered)
        if self.table is None:
            if not self._is_first_due(table, len(live), now_s):
                return
        elif self.table.version == self._version and _same(table, self.table):
            return
        self.table = table
        self._version = table.version
        self._is_dirty = bool(exclusions)  # which are to be acted upon, even if nobody reads
        self._history = [*self._history[-MAX_HISTORY:], (table.version, exclusions)]
        self._missing = "" if table.is_complete else "experts that no live shard holds"
        log.info(
            "table published: table_version=%s shards=%s redundancy=%s complete=%s",
            table.version,
            len(live),
            table.redundancy(),
            table.is_complete,
        )

    def _is_first_due(self, table: ReplicaTable, n_live: int, now_s: float) -> bool:
        if self.placer.target:
            there = int(np.count_nonzero(table.counts))
            self._missing = f"experts: {there} of {table.counts.size} in place on {n_live} shards"
        assert self._first_s is not None
        has_settled = now_s - self._first_s > self.settings.placer.settle_s
        return table.is_complete and (has_settled or n_live >= self.placer.expected)


def _same(one: ReplicaTable, other: ReplicaTable) -> bool:
    return (
        one.shards == other.shards
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.holders, other.holders)
    )

"""The controller's decisions: reports go in, a table and orders come out; no Ray, no clock.

Shards say what they hold, attention replicas which table they use and which shards they lost.
The state is rebuilt from those reports alone, so a controller that comes back needs no memory.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.errors import ConfigError
from router.moves import Exclusion, LoadExpert, ShardSlots, reconcile, settled
from router.orders import servable
from router.placement import ShardRoom, place
from router.table import ReplicaTable, ShardAddress, ShardId, build_table

log = logging.getLogger(__name__)

MAX_LOADS_PER_SHARD = 64  # orders at once; a shard works on one layer of them at a time
MAX_HISTORY = 100  # tables remembered, to know what every reader leaves out

Slots = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """The operator's choices that the controller needs."""

    shards: int  # how many the pool should have
    redundancy: int  # distinct shards an expert should be on
    lease_s: float  # silence after which a shard counts as dead
    settle_s: float  # how long a first table waits for shards that have not reported yet
    replacement_grace_s: float  # after a death, wait so long for a new shard before moving experts


@dataclass(slots=True)
class ShardState:
    """What is known of one shard."""

    address: ShardAddress
    held: Slots  # [L, S]
    loading: tuple[LoadExpert, ...]
    reported_s: float
    suspected_s: float | None = None  # an attention replica could not reach it


@dataclass(slots=True)
class ControlState:
    """Feed it reports and the time; ask it for the table and for orders."""

    settings: ControlSettings
    shards: dict[ShardId, ShardState] = field(default_factory=dict)
    readers: dict[str, int] = field(default_factory=dict)  # replica → table version it uses
    table: ReplicaTable | None = None
    n_experts: int = 0
    target: dict[ShardId, Slots] = field(default_factory=dict)
    waiting_for: str = "shards"
    _first_s: float | None = None
    _lost_s: float | None = None
    _history: list[tuple[int, frozenset[Exclusion]]] = field(default_factory=list)
    _orders: dict[ShardId, tuple[LoadExpert, ...]] = field(default_factory=dict)
    _version: int = 0
    _members: frozenset[ShardId] = frozenset()

    def on_shard(
        self,
        address: ShardAddress,
        *,
        n_experts: int,
        held: Slots,
        loading: tuple[LoadExpert, ...],
        now_s: float,
    ) -> tuple[LoadExpert, ...]:
        """A shard's report; returns what it should load besides what it says it is loading."""
        known = self.shards.get(address.shard_id)
        if known is None:
            log.info("shard registered: shard=%s host=%s", address.shard_id, address.host)
            self._first_s = now_s if self._first_s is None else self._first_s
        suspected_s = known.suspected_s if known else None
        if suspected_s is not None and now_s > suspected_s:
            log.info("shard is back: shard=%s", address.shard_id)
            suspected_s = None  # it reported after the complaint: it lives
        self.n_experts = n_experts
        self.shards[address.shard_id] = ShardState(address, held, loading, now_s, suspected_s)
        self.step(now_s)
        orders = self._orders.pop(address.shard_id, ())
        self.shards[address.shard_id].loading = (*loading, *orders)
        return orders

    def on_reader(
        self, replica_id: str, table_version: int, lost: Mapping[ShardId, str], *, now_s: float
    ) -> None:
        """An attention replica's report."""
        self.readers[replica_id] = table_version
        self._version = max(self._version, table_version)  # after a restart: go on above it
        for shard_id, reason in lost.items():
            shard = self.shards.get(shard_id)
            if shard is not None and shard.suspected_s is None:
                log.warning(
                    "shard suspected: shard=%s by=%s reason=%s", shard_id, replica_id, reason
                )
                shard.suspected_s = now_s
        self.step(now_s)

    def forget_reader(self, replica_id: str) -> None:
        """An attention replica is gone; nobody waits for it to adopt a table."""
        self.readers.pop(replica_id, None)

    def step(self, now_s: float) -> None:
        """Let time pass: leases end, targets are made, the table follows what is held."""
        self._expire(now_s)
        live = {s: state for s, state in self.shards.items() if state.suspected_s is None}
        if not live:
            self.waiting_for = f"shards: 0 of {self.settings.shards} have reported"
            self._orders = {}
            return
        self._retarget(live, now_s)
        excluded = self._history[-1][1] if self._history else frozenset[Exclusion]()
        oldest = min(self.readers.values(), default=self._version)
        plan = reconcile(
            {s: t for s, t in self.target.items() if s in live},
            {s: ShardSlots(state.held, state.loading) for s, state in live.items()},
            redundancy=self.settings.redundancy,
            excluded=excluded,
            settled=settled(self._history, oldest_in_use=oldest),
            max_loads_per_shard=MAX_LOADS_PER_SHARD,
        )
        self._orders = plan.loads_by_shard()
        self._publish(live, plan.exclusions, now_s)

    def _publish(
        self, live: Mapping[ShardId, ShardState], exclusions: frozenset[Exclusion], now_s: float
    ) -> None:
        """Make a new table if what can be used has changed; the first one only when it is due."""
        holdings = [
            (live[s].address, servable(s, ShardSlots(live[s].held, live[s].loading), exclusions))
            for s in sorted(live)
        ]
        n_layers = next(iter(live.values())).held.shape[0]
        table = build_table(
            self._version + 1, holdings, n_layers=n_layers, n_experts=self.n_experts
        )
        if self.table is None:
            there = int(np.count_nonzero(table.counts))
            if self.target:
                self.waiting_for = (
                    f"experts: {there} of {table.counts.size} in place on {len(live)} shards"
                )
            assert self._first_s is not None
            has_settled = len(live) >= self.settings.shards or (
                now_s - self._first_s > self.settings.settle_s
            )
            if not (table.is_complete and has_settled):
                return
        elif self.table.version == self._version and _same(table, self.table):
            return
        self.table = table
        self._version = table.version
        self._history = [*self._history[-MAX_HISTORY:], (table.version, exclusions)]
        self.waiting_for = "" if table.is_complete else "experts that no live shard holds"
        log.info(
            "table published: table_version=%s shards=%s redundancy=%s complete=%s",
            table.version,
            len(live),
            table.redundancy(),
            table.is_complete,
        )

    def _expire(self, now_s: float) -> None:
        for shard_id, state in list(self.shards.items()):
            silent_s = now_s - state.reported_s
            if silent_s > self.settings.lease_s:
                log.warning("shard lost: shard=%s silent_s=%.1f", shard_id, silent_s)
                del self.shards[shard_id]
                self._lost_s = now_s

    def _retarget(self, live: dict[ShardId, ShardState], now_s: float) -> None:
        members = frozenset(live)
        if members == self._members or not self._may_place(live, now_s):
            return
        held = {s: state.held for s, state in live.items()}
        layers = next(iter(held.values())).shape[0]
        rooms = [ShardRoom(s, live[s].address.host, held[s].shape[1]) for s in sorted(held)]
        loads = np.ones((layers, self.n_experts))
        for redundancy in range(self.settings.redundancy, 0, -1):
            try:
                self.target = place(loads, rooms, redundancy=redundancy, current=held)
            except ConfigError as error:
                self.waiting_for = str(error)
                continue
            log.info(
                "target placed: shards=%s redundancy=%s wanted=%s reason=members changed",
                len(members),
                redundancy,
                self.settings.redundancy,
            )
            self._members = members
            return
        log.warning("no placement: shards=%s reason=%s", len(members), self.waiting_for)
        self._members = members

    def _may_place(self, live: dict[ShardId, ShardState], now_s: float) -> bool:
        """Whether to (re)place now, or to wait for shards that are expected."""
        assert self._first_s is not None
        if len(live) >= self.settings.shards:
            self._lost_s = None
            return True
        waited_s = now_s - self._first_s
        if waited_s <= self.settings.settle_s:
            return False  # after a restart the others will report within moments
        if not self._members and all((s.held < 0).all() for s in live.values()):
            self.waiting_for = f"shards: {len(live)} of {self.settings.shards} have reported"
            return waited_s > self.settings.replacement_grace_s
        if not self._holds_all(live):
            return True  # an expert is nowhere: load it wherever there is room
        if self._lost_s is None:
            self._lost_s = now_s
        return now_s - self._lost_s > self.settings.replacement_grace_s

    def _holds_all(self, live: dict[ShardId, ShardState]) -> bool:
        held = [state.held for state in live.values()]
        for layer in range(held[0].shape[0]):
            experts = np.unique(np.concatenate([h[layer] for h in held]))
            if np.count_nonzero(experts >= 0) < self.n_experts:
                return False
        return True


def _same(one: ReplicaTable, other: ReplicaTable) -> bool:
    return (
        one.shards == other.shards
        and np.array_equal(one.counts, other.counts)
        and np.array_equal(one.holders, other.holders)
    )

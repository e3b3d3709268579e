"""One layer's rows while they are away: events in, instructions out; no socket, no clock.

Every pair (token, choice) is answered exactly once. A send has a number; when a shard dies its
sends are forgotten and their pairs go again under new numbers, so a late answer finds no entry
and is dropped. Pairs whose expert has no live holder are stranded until another table comes.
Source: the client-side failure handling follows EaaS (arXiv 2509.17863) in idea.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.choose import Policy, choose_shards, mask_dead
from router.dispatch import ShardRows, plan_layer, plan_pairs
from router.table import ReplicaTable, ShardId


@dataclass(frozen=True, slots=True)
class SendRows:
    """Instruction: send these rows to this shard under this number."""

    number: int
    shard_id: ShardId
    rows: ShardRows


class SendNumbers:
    """Endless numbers for sends, shared by all layers; none is used twice."""

    def __init__(self) -> None:
        self.last = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return self.take(1)

    def take(self, count: int) -> int:
        """The first of so many."""
        self.last += count
        return self.last - count + 1


class LayerExchange:
    """State of one layer in one step; make one per layer and forget it when done."""

    def __init__(
        self,
        expert_ids: NDArray[np.int32],
        *,
        layer: int,
        table: ReplicaTable,
        dead: frozenset[ShardId],
        numbers: Iterator[int],
        policy: Policy = Policy.LEAST_TOKENS,
        load: NDArray[np.float32] | None = None,
    ) -> None:
        """expert_ids: [T, K] int32, the gate's choices; `dead`: shards to leave out.

        numbers: an endless counter shared by all layers, so that no number is used twice.
        load: [S] float32, rows that each shard of `table` has waiting already; None is idle.
        """
        self._expert_ids = expert_ids
        self._layer = layer
        self._numbers = numbers
        self._policy = policy
        self._dead = set(dead)
        self._refused: set[ShardId] = set()
        self._pending: dict[int, SendRows] = {}
        self._stranded: NDArray[np.int32] = np.empty(0, np.int32)
        self._load = load
        self._use(table)

    def _use(self, table: ReplicaTable) -> None:
        self._table = table
        holders, counts = table.holders[self._layer], table.counts[self._layer]
        if out := self._dead | self._refused:
            lost = np.array([a.shard_id in out for a in table.shards], dtype=np.bool_)
            holders, counts = mask_dead(holders, counts, lost)
        self._holders, self._counts = holders, counts

    @property
    def table_version(self) -> int:
        """Of the table by which pairs are placed now."""
        return self._table.version

    @property
    def n_pairs(self) -> int:
        """(token, choice) pairs of the layer."""
        return int(self._expert_ids.size)

    @property
    def is_done(self) -> bool:
        """Whether every pair has been answered."""
        return not self._pending and not self._stranded.size

    @property
    def waiting_for(self) -> frozenset[ShardId]:
        """Shards with unanswered sends."""
        return frozenset(send.shard_id for send in self._pending.values())

    @property
    def has_stranded(self) -> bool:
        """Whether there are `stranded_experts`."""
        return bool(self._stranded.size)

    @property
    def stranded_experts(self) -> tuple[int, ...]:
        """Experts that are needed and that no live shard of the table holds."""
        return tuple(int(e) for e in np.unique(self._expert_ids.reshape(-1)[self._stranded]))

    def begin(self, positions: NDArray[np.int32] | None = None) -> tuple[SendRows, ...]:
        """Place every pair, or only those at `positions` [P]. Call once."""
        if positions is None:
            plan = plan_layer(
                self._expert_ids, self._holders, self._counts, self._outstanding(), self._policy
            )
            if plan is not None:
                return self._send(plan)
            positions = np.arange(self._expert_ids.size, dtype=np.int32)
        return self._place(positions)

    def go_on(self, sends: tuple[SendRows, ...]) -> None:
        """Instead of `begin`: every pair has been placed already, in these."""
        self._pending.update((send.number, send) for send in sends)

    def can_place(self, positions: NDArray[np.int32]) -> NDArray[np.bool_]:
        """[P] bool, whether a live shard holds the expert of each of these pairs."""
        usable: NDArray[np.bool_] = self._counts[self._expert_ids.reshape(-1)[positions]] > 0
        return usable

    def expects(self, number: int, shard_id: ShardId) -> SendRows | None:
        """The send with this number; None if it is late, repeated or from a stranger."""
        send = self._pending.get(number)
        return send if send is not None and send.shard_id == shard_id else None

    def on_answer(self, number: int) -> None:
        """An expected send has been answered in full."""
        del self._pending[number]

    def on_lost(self, shard_id: ShardId) -> tuple[SendRows, ...]:
        """The shard is gone: its unanswered pairs go to other holders."""
        self._dead.add(shard_id)
        return self._take_back(shard_id)

    def _take_back(self, shard_id: ShardId) -> tuple[SendRows, ...]:
        self._use(self._table)
        lost = [s for s in self._pending.values() if s.shard_id == shard_id]
        for send in lost:
            del self._pending[send.number]
        if not lost:
            return ()
        return self._place(np.concatenate([s.rows.pair_positions for s in lost]))

    def on_refused(self, number: int, shard_id: ShardId) -> tuple[SendRows, ...]:
        """The shard will not compute this send: it is left out until `retry_refused`."""
        if not self.expects(number, shard_id):
            return ()
        self._refused.add(shard_id)
        return self._take_back(shard_id)

    @property
    def has_refused(self) -> bool:
        """Whether a shard is left out because it refused."""
        return bool(self._refused)

    def retry_refused(self) -> tuple[SendRows, ...]:
        """Place what is stranded, also on shards that refused."""
        self._refused.clear()
        self._use(self._table)
        return self._place_stranded()

    def on_table(self, table: ReplicaTable, *, dead: frozenset[ShardId]) -> tuple[SendRows, ...]:
        """A newer table: place what was stranded; what is already away stays there."""
        self._dead = set(dead)
        self._refused.clear()
        self._load = None
        self._use(table)
        return self._place_stranded()

    def _place_stranded(self) -> tuple[SendRows, ...]:
        stranded, self._stranded = self._stranded, np.empty(0, np.int32)
        return self._place(stranded) if stranded.size else ()

    def _place(self, positions: NDArray[np.int32]) -> tuple[SendRows, ...]:
        experts = self._expert_ids.reshape(-1)[positions]
        placeable = self.can_place(positions)
        if not placeable.all():
            self._stranded = np.concatenate([self._stranded, positions[~placeable]])
            positions, experts = positions[placeable], experts[placeable]
        if not positions.size:
            return ()
        shards = choose_shards(
            experts.reshape(-1, 1), self._holders, self._counts, self._outstanding(), self._policy
        )
        n_choices = self._expert_ids.shape[1]
        return self._send(plan_pairs(positions, shards.reshape(-1), experts, n_choices=n_choices))

    def _send(self, plan: tuple[ShardRows, ...]) -> tuple[SendRows, ...]:
        sends = tuple(
            SendRows(next(self._numbers), self._table.shards[rows.shard].shard_id, rows)
            for rows in plan
        )
        self.go_on(sends)
        return sends

    def _outstanding(self) -> NDArray[np.float32]:
        """[S] rows that each shard of the table has waiting, this layer's own included."""
        n_shards = len(self._table.shards)
        load = np.zeros(n_shards, np.float32) if self._load is None else self._load
        if self._pending:
            load = load.copy()
            index = {address.shard_id: i for i, address in enumerate(self._table.shards)}
            for send in self._pending.values():
                if send.shard_id in index:
                    load[index[send.shard_id]] += send.rows.pair_rows.size
        return load

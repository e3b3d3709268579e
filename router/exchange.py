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
from router.dispatch import ShardRows, plan_pairs
from router.table import ReplicaTable, ShardId


@dataclass(frozen=True, slots=True)
class SendRows:
    """Instruction: send these rows to this shard under this number."""

    number: int
    shard_id: ShardId
    rows: ShardRows


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
        self._pending: dict[int, SendRows] = {}
        self._stranded: NDArray[np.int32] = np.empty(0, np.int32)
        self._load = load
        self._use(table)

    def _use(self, table: ReplicaTable) -> None:
        self._table = table
        holders, counts = table.holders[self._layer], table.counts[self._layer]
        if self._dead:
            lost = np.array([a.shard_id in self._dead for a in table.shards], dtype=np.bool_)
            holders, counts = mask_dead(holders, counts, lost)
        self._holders, self._counts = holders, counts

    @property
    def is_done(self) -> bool:
        """Whether every pair has been answered."""
        return not self._pending and not self._stranded.size

    @property
    def waiting_for(self) -> frozenset[ShardId]:
        """Shards with unanswered sends."""
        return frozenset(send.shard_id for send in self._pending.values())

    @property
    def stranded_experts(self) -> tuple[int, ...]:
        """Experts that are needed and that no live shard of the table holds."""
        return tuple(int(e) for e in np.unique(self._expert_ids.reshape(-1)[self._stranded]))

    def begin(self) -> tuple[SendRows, ...]:
        """Place every pair. Call once."""
        return self._place(np.arange(self._expert_ids.size, dtype=np.int32))

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
        self._use(self._table)
        lost = [s for s in self._pending.values() if s.shard_id == shard_id]
        for send in lost:
            del self._pending[send.number]
        if not lost:
            return ()
        return self._place(np.concatenate([s.rows.pair_positions for s in lost]))

    def on_refused(self, number: int, shard_id: ShardId) -> tuple[SendRows, ...]:
        """The shard does not hold an expert of this send: for this layer it counts as lost."""
        return self.on_lost(shard_id) if self.expects(number, shard_id) else ()

    def on_table(self, table: ReplicaTable, *, dead: frozenset[ShardId]) -> tuple[SendRows, ...]:
        """A newer table: place what was stranded; what is already away stays there."""
        self._dead = set(dead)
        self._load = None
        self._use(table)
        stranded, self._stranded = self._stranded, np.empty(0, np.int32)
        return self._place(stranded) if stranded.size else ()

    def _place(self, positions: NDArray[np.int32]) -> tuple[SendRows, ...]:
        experts = self._expert_ids.reshape(-1)[positions]
        placeable = self._counts[experts] > 0
        if not placeable.all():
            self._stranded = np.concatenate([self._stranded, positions[~placeable]])
            positions, experts = positions[placeable], experts[placeable]
        if not positions.size:
            return ()
        load = self._load
        if load is None:
            load = np.zeros(len(self._table.shards), np.float32)
        shards = choose_shards(
            experts.reshape(-1, 1), self._holders, self._counts, load, self._policy
        )
        sends = tuple(
            SendRows(next(self._numbers), self._table.shards[rows.shard].shard_id, rows)
            for rows in plan_pairs(
                positions, shards.reshape(-1), experts, n_choices=self._expert_ids.shape[1]
            )
        )
        self._pending.update((send.number, send) for send in sends)
        return sends

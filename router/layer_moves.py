"""One layer's part of `moves`: which loads may start, which replicas must stop being offered.

Four rules, each tried only where the one before leaves the layer with nothing to do:
load into free or settled slots; exclude replicas beyond the redundancy; exclude one replica of
an expert that keeps another; lend a slot to an expert that has one replica, in a wrong place.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.orders import Exclusion, LoadExpert
from router.table import ShardId


@dataclass(frozen=True, slots=True)
class Budget:
    """What each shard may still start in this step, over all layers; used up as layers go."""

    loads: Counter[ShardId]
    exclusions: Counter[ShardId]


@dataclass(slots=True)
class _Shard:
    """One shard's slots in this layer."""

    wanted: list[int]  # expert by slot, -1 for none
    slot_of: dict[int, int]  # experts that are ready
    free: list[int]  # slots
    missing: list[int]  # experts wanted, neither ready nor being loaded
    leaving: list[int] = field(default_factory=list)  # excluded experts whose slots are needed

    @property
    def surplus(self) -> list[int]:
        """Ready experts that the target does not want here."""
        return [e for e in self.slot_of if e not in self.wanted]

    @property
    def n_short(self) -> int:
        """Missing experts for which no slot is free or becoming free."""
        return len(self.missing) - len(self.free) - len(self.leaving)


class LayerMoves:
    """Add the shards, run, read `loads`, `exclusions` and `is_blocked`."""

    def __init__(self, layer: int, redundancy: int, budget: Budget) -> None:
        self.loads: list[LoadExpert] = []
        self.exclusions: set[Exclusion] = set()
        self.is_blocked = False
        self._layer = layer
        self._redundancy = redundancy
        self._budget = budget
        self._shards: dict[ShardId, _Shard] = {}
        self._offered: Counter[int] = Counter()  # expert → shards that the next table names
        self._misplaced: set[int] = set()  # ready in slots that their shard needs for others
        self._is_busy = False  # something is under way, so waiting will help

    def add_shard(
        self,
        shard_id: ShardId,
        wanted: NDArray[np.int32] | None,
        held: NDArray[np.int32],
        loading: Iterable[LoadExpert],
    ) -> None:
        """Tell of one live shard. wanted: [S], None if it has no target; held: [S]."""
        coming = {load.slot: load.expert for load in loading if load.layer == self._layer}
        self._is_busy |= bool(coming)
        slot_of: dict[int, int] = {}
        free = []
        for slot, expert in enumerate(held.tolist()):
            if slot in coming:
                continue
            if expert < 0 or expert in slot_of:
                free.append(slot)
            else:
                slot_of[expert] = slot
        goal = [] if wanted is None else wanted.tolist()
        present = slot_of.keys() | set(coming.values())
        missing = [e for e in dict.fromkeys(goal) if e >= 0 and e not in present]
        self._shards[shard_id] = _Shard(goal, slot_of, free, missing)
        self._offered.update(slot_of.keys())

    def run(self, *, excluded: AbstractSet[Exclusion], settled: AbstractSet[Exclusion]) -> None:
        """Decide. Exclusions of other layers are ignored."""
        self._shards = dict(sorted(self._shards.items()))
        short = [shard for shard in self._shards.values() if shard.n_short > 0]
        self._misplaced = {e for shard in short for e in shard.surplus}
        self._keep(excluded)
        for shard_id, shard in self._shards.items():
            self._load(shard_id, shard, settled)
        self._exclude_spare()
        if not self._is_busy:
            self._exclude_one()
        if not self._is_busy:
            self._lend(excluded, settled)
        self.is_blocked = not self._is_busy

    def _exclude(self, shard_id: ShardId, expert: int) -> None:
        self._offered[expert] -= 1
        self._shards[shard_id].leaving.append(expert)
        self._budget.exclusions[shard_id] -= 1
        self.exclusions.add(Exclusion(shard_id, self._layer, expert))
        self._is_busy = True

    def _keep(self, excluded: AbstractSet[Exclusion]) -> None:
        """Go on leaving out what is still in the way and still has another replica."""
        for shard_id, shard in self._shards.items():
            for expert in shard.surplus:
                known = Exclusion(shard_id, self._layer, expert) in excluded
                if known and shard.n_short > 0 and self._offered[expert] > 1:
                    self._exclude(shard_id, expert)

    def _load(self, shard_id: ShardId, shard: _Shard, settled: AbstractSet[Exclusion]) -> None:
        """Start loads into slots that are free, or whose expert nobody is sent to any more."""
        gone = [e for e in shard.leaving if Exclusion(shard_id, self._layer, e) in settled]
        open_slots = shard.free + [shard.slot_of[e] for e in gone]
        for expert in self._urgent_first(shard.missing):
            if not open_slots:
                break
            own = shard.wanted.index(expert)
            slot = own if own in open_slots else open_slots[0]
            open_slots.remove(slot)
            self._order_within_budget(shard_id, slot, expert)

    def _order_within_budget(self, shard_id: ShardId, slot: int, expert: int) -> None:
        self._is_busy = True
        if self._budget.loads[shard_id] > 0:
            self._budget.loads[shard_id] -= 1
            self.loads.append(LoadExpert(shard_id, self._layer, slot, expert))

    def _exclude_spare(self) -> None:
        """Stop offering replicas beyond the redundancy where their slots are needed."""
        for shard_id in sorted(self._shards, key=self._unblocks_others, reverse=True):
            shard = self._shards[shard_id]
            for expert in sorted(shard.surplus, key=lambda e: -self._offered[e]):
                if shard.n_short < 1 or self._offered[expert] <= self._redundancy:
                    break
                if expert in shard.leaving:
                    continue
                if self._budget.exclusions[shard_id] < 1:
                    self._is_busy = True
                    break
                self._exclude(shard_id, expert)

    def _exclude_one(self) -> None:
        """Stop offering one replica although its expert falls below the redundancy."""
        candidates = [
            (self._unblocks_others(shard_id), self._offered[expert], shard_id, expert)
            for shard_id, shard in self._shards.items()
            if shard.n_short > 0
            for expert in shard.surplus
            if self._offered[expert] > 1
        ]
        if candidates:
            self._exclude(*max(candidates)[2:])

    def _lend(self, excluded: AbstractSet[Exclusion], settled: AbstractSet[Exclusion]) -> None:
        """Break a ring of single replicas that wait for each other's slots.

        One of them is loaded a second time into a slot that is free, or whose expert has
        another replica; where the slot's own expert is wanted, it comes back after the ring.
        """
        stuck = [e for shard in self._shards.values() if shard.n_short > 0 for e in shard.surplus]
        for expert in sorted(set(stuck)):
            lenders = [
                (e not in shard.wanted, Exclusion(s, self._layer, e) in excluded, s, e)
                for s, shard in self._shards.items()
                if expert not in shard.slot_of
                for e in shard.slot_of
                if self._offered[e] > 1
            ]
            empty = [s for s, d in self._shards.items() if d.free and expert not in d.slot_of]
            if empty:
                self._order_within_budget(empty[0], self._shards[empty[0]].free[0], expert)
            elif lenders:
                shard_id, lent = max(lenders)[2:]
                self._exclude(shard_id, lent)
                if Exclusion(shard_id, self._layer, lent) in settled:
                    slot = self._shards[shard_id].slot_of[lent]
                    self._order_within_budget(shard_id, slot, expert)
            if self._is_busy:
                return

    def _urgent_first(self, missing: list[int]) -> list[int]:
        """Experts that sit in a wrong place first: once copied they can make room there."""
        return sorted(missing, key=lambda e: e not in self._misplaced)

    def _unblocks_others(self, shard_id: ShardId) -> bool:
        return not self._misplaced.isdisjoint(self._shards[shard_id].missing)

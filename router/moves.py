"""One step from what the shards hold towards what they should hold.

Copy first, publish, drop later: a slot is overwritten only when no table that anybody uses
offers its expert there any more. Nothing is remembered between steps; the controller calls this
whenever a report comes in. One layer's reasoning is in `layer_moves`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.layer_moves import Budget, LayerMoves
from router.orders import Exclusion, LoadExpert, ShardSlots
from router.table import ShardId

__all__ = ["Exclusion", "LoadExpert", "Reconciliation", "ShardSlots", "reconcile", "settled"]

_AHEAD = 2  # replicas excluded per load allowed at once, so that loads need not wait for readers


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What to do now."""

    loads: tuple[LoadExpert, ...]  # to start now; without those under way
    exclusions: frozenset[Exclusion]  # all that the next table leaves out, old and new
    blocked_layers: tuple[int, ...]  # layers whose target cannot be reached without a gap
    is_done: bool  # whether every shard has all that the target wants there

    def loads_by_shard(self) -> dict[ShardId, tuple[LoadExpert, ...]]:
        """`loads`, each shard's own."""
        out: dict[ShardId, tuple[LoadExpert, ...]] = {}
        for load in self.loads:
            out[load.shard_id] = (*out.get(load.shard_id, ()), load)
        return out


def reconcile(
    target: Mapping[ShardId, NDArray[np.int32]],
    actual: Mapping[ShardId, ShardSlots],
    *,
    redundancy: int,
    excluded: AbstractSet[Exclusion] = frozenset(),
    settled: AbstractSet[Exclusion] = frozenset(),
    max_loads_per_shard: int = 2,
) -> Reconciliation:
    """Say which loads may start and which replicas the next table must leave out.

    target: [L, S] int32 per shard, what its slots should hold, -1 for nothing. What counts is
        the set of experts a layer; a shard may have them in other slots.
    actual: the live shards; those without a target keep what they have.
    redundancy: replicas an expert should keep while it moves. Where no step is possible with
        that, one at a time may go below it, but never to zero.
    excluded: what the newest published table leaves out.
    settled: the part of it that every table still in use leaves out too; see `settled`.
    max_loads_per_shard: loads at once on one shard, those under way included; >= 1.
    An expert with a replica that is offered now keeps one in every table made of the answer.
    """
    budget = Budget(
        loads=Counter({s: max_loads_per_shard - len(slots.loading) for s, slots in actual.items()}),
        exclusions=Counter(dict.fromkeys(actual, _AHEAD * max_loads_per_shard)),
    )
    usable = frozenset(settled) & frozenset(excluded)
    intact = {s: slots.intact() for s, slots in sorted(actual.items())}
    loads: list[LoadExpert] = []
    exclusions: set[Exclusion] = set()
    blocked = []
    unfinished = _unfinished_layers(target, intact)
    for layer in unfinished:
        moves = LayerMoves(layer, redundancy, budget)
        for shard_id, slots in actual.items():
            wanted = target[shard_id][layer] if shard_id in target else None
            moves.add_shard(shard_id, wanted, slots.held[layer], slots.loading)
        moves.run(excluded=excluded, settled=usable)
        loads += moves.loads
        exclusions |= moves.exclusions
        if moves.is_blocked:
            blocked.append(layer)
    return Reconciliation(tuple(loads), frozenset(exclusions), tuple(blocked), not unfinished)


def settled(
    history: Sequence[tuple[int, AbstractSet[Exclusion]]], *, oldest_in_use: int
) -> frozenset[Exclusion]:
    """What every table from version `oldest_in_use` to the newest leaves out.

    history: (version, its exclusions) of the published tables by rising version. Empty if it
    does not reach back to `oldest_in_use`: nothing is known of what a reader offers then.
    """
    in_use = [set(exclusions) for version, exclusions in history if version >= oldest_in_use]
    if not in_use or history[0][0] > oldest_in_use:
        return frozenset()
    return frozenset(set.intersection(*in_use))


def _unfinished_layers(
    target: Mapping[ShardId, NDArray[np.int32]], intact: Mapping[ShardId, NDArray[np.int32]]
) -> list[int]:
    layers: set[int] = set()
    for shard_id, held in intact.items():
        if shard_id in target:
            wanted = target[shard_id]
            present = (wanted[:, :, None] == held[:, None, :]).any(axis=2)
            layers.update(np.flatnonzero((~present & (wanted >= 0)).any(axis=1)).tolist())
    return sorted(layers)

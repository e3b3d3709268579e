"""What each slot of each shard should hold, layer by layer.

The controller asks when shards come or go and when loads drift; `rebalance` says whether the
answer is worth its moves, `moves` carries them out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.copies import copies_wanted
from router.errors import ConfigError
from router.levelling import level, part_hosts
from router.seating import (
    Floats,
    Ints,
    Layer,
    best_seat,
    empty_layer,
    place_expert,
    remove_expert,
    seat_by_moving,
    weigh,
    worst_home,
)
from router.table import ShardId

Slots = NDArray[np.int32]
"""[L, S] the expert in each slot of one shard, -1 for an empty one."""


@dataclass(frozen=True, slots=True)
class ShardRoom:
    """What a shard offers to a placement."""

    shard_id: ShardId
    host: str  # replicas of an expert go to different hosts where they can
    slots_per_layer: int


def place(
    loads: NDArray[np.float64],
    shards: Sequence[ShardRoom],
    *,
    redundancy: int,
    current: Mapping[ShardId, Slots] | None = None,
) -> dict[ShardId, Slots]:
    """Give every expert at least `redundancy` shards, then few in common, then level load.

    loads: [L, E] float64, rows per expert in any unit, >= 0; a layer of zeros counts as even.
    redundancy: distinct shards per expert, >= 1; distinct hosts too as far as possible.
    current: [L, S] int32 per shard, what is in place. Replicas stay, in their slots, unless
        they are too many, or must make way for the goals above. None: all slots are empty.
    Returns [L, slots_per_layer] int32 per shard, -1 where no expert would be of use.
    Never puts an expert twice on a shard. The same arguments give the same answer.
    Raises ConfigError with the numbers if there are too few shards or slots.
    Source: surplus replicas as in deepseek-ai/EPLB; spreading over pairs of shards is ours.
    """
    _check(loads, shards, redundancy)
    n_layers, _ = loads.shape
    room = np.array([s.slots_per_layer for s in shards], dtype=np.int64)
    _, host = np.unique([s.host for s in shards], return_inverse=True)
    slots = np.full((n_layers, len(shards), int(room.max())), -1, dtype=np.int32)
    for index, shard in enumerate(shards):
        held = (current or {}).get(shard.shard_id)
        if held is not None:
            width = min(held.shape[1], shard.slots_per_layer)
            slots[:, index, :width] = held[:, :width]
    for index, weights in enumerate(np.asarray(loads, dtype=np.float64)):
        _place_layer(weights, room, host.astype(np.int64), redundancy, slots[index])
    return {s.shard_id: slots[:, i, : s.slots_per_layer].copy() for i, s in enumerate(shards)}


def _check(loads: NDArray[np.float64], shards: Sequence[ShardRoom], redundancy: int) -> None:
    assert loads.ndim == 2 and np.isfinite(loads).all() and (loads >= 0).all()
    n_experts = loads.shape[1]
    useful = [min(s.slots_per_layer, n_experts) for s in shards if s.slots_per_layer > 0]
    if redundancy < 1:
        raise ConfigError(f"redundancy is {redundancy}; it must be at least 1.")
    if len(useful) < redundancy:
        raise ConfigError(
            f"redundancy {redundancy} needs {redundancy} shards with slots, have {len(useful)}. "
            "Add shards or lower the redundancy."
        )
    if sum(useful) < n_experts * redundancy:
        raise ConfigError(
            f"{n_experts} experts x redundancy {redundancy} need {n_experts * redundancy} slots a "
            f"layer, have {sum(useful)} on {len(useful)} shards. Add shards, raise their slots "
            "per layer or lower the redundancy."
        )


def _place_layer(weights: Floats, room: Ints, host: Ints, redundancy: int, slots: Slots) -> None:
    """Replace `slots` [S, M], what is in place in one layer, by what should be."""
    if not weights.any():
        weights = np.ones_like(weights)
    layer = _kept(weights, room, host, redundancy, slots)
    if not _seat_missing(layer, (int(room.size),)):
        layer = _kept(weights, room, host, redundancy, slots)
        _seat_missing(layer, (redundancy, int(room.size)))
    _fill(layer, weights)
    part_hosts(layer)
    level(layer, is_fresh=not (slots >= 0).any())
    _number(layer, slots)


def _kept(weights: Floats, room: Ints, host: Ints, redundancy: int, slots: Slots) -> Layer:
    """Seat what is in place, as far as it is wanted."""
    layer = empty_layer(weights.size, room, host, slots.shape[1])
    for shard, slot in np.argwhere((slots >= 0) & (slots < weights.size)):
        expert = slots[shard, slot]
        if not layer.on[expert, shard]:
            place_expert(layer, int(expert), int(shard))
    seats = int(np.minimum(room, weights.size).sum())
    most = int((room > 0).sum())
    layer.copies[:] = copies_wanted(weights, layer.n_homes, redundancy, most, seats)
    weigh(layer, weights / layer.copies)
    for expert in np.flatnonzero(layer.n_homes > layer.copies):
        while layer.n_homes[expert] > layer.copies[expert]:
            remove_expert(layer, int(expert), worst_home(layer, int(expert)))
    return layer


def _seat_missing(layer: Layer, goals: tuple[int, ...]) -> bool:
    """Seat wanted replicas, heaviest first, up to each goal in turn; false if some are left."""
    order = np.argsort(-layer.share, kind="stable").tolist()
    for goal in goals:
        for expert in order:
            while layer.n_homes[expert] < min(goal, layer.copies[expert]):
                shard = best_seat(layer, expert)
                if shard >= 0:
                    place_expert(layer, expert, shard)
                elif not seat_by_moving(layer, expert):
                    break
    return bool((layer.n_homes == layer.copies).all())


def _fill(layer: Layer, weights: Floats) -> None:
    """Use seats that are still free for the heaviest expert that its shard lacks."""
    for shard in np.flatnonzero(layer.n_seats < layer.room):
        while layer.n_seats[shard] < layer.room[shard] and not layer.on[:, shard].all():
            share = np.where(layer.on[:, shard], -1.0, weights / layer.n_homes)
            place_expert(layer, int(share.argmax()), int(shard))
    weigh(layer, weights / layer.n_homes)


def _number(layer: Layer, slots: Slots) -> None:
    """Write the seats into `slots` [S, M]; an expert that stays on a shard keeps its slot."""
    for shard, row in enumerate(slots):
        seated = layer.seats[shard, : layer.n_seats[shard]]
        stays = np.isin(row, seated)
        stays &= np.bincount(np.unique(row, return_index=True)[1], minlength=row.size) > 0
        arriving = np.setdiff1d(seated, row[stays])
        row[~stays] = -1
        row[np.flatnonzero(~stays)[: arriving.size]] = arriving

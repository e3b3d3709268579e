"""Compiled loops behind `placement`: one layer's experts on seats, and how they get there.

A seat is a slot without a number: which slot of its shard an expert takes is settled last, by
`placement`. Improving a full layer is `levelling`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.jit import jit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Layer(NamedTuple):
    """Who sits where. `place_expert` and `remove_expert` keep all of it in step."""

    room: Ints  # [S] seats of each shard
    host: Ints  # [S] number of the shard's host
    share: Floats  # [E] load of one replica
    copies: Ints  # [E] replicas wanted
    homes: Ints  # [E, S] shards of each expert, the first n_homes
    n_homes: Ints  # [E]
    seats: Ints  # [S, M] experts of each shard, the first n_seats, in any order
    n_seats: Ints  # [S]
    on: NDArray[np.bool_]  # [E, S] whether the expert is on the shard
    common: Ints  # [S, S] experts that two shards have in common
    load: Floats  # [S] sum of the shares on each shard


def empty_layer(n_experts: int, room: Ints, host: Ints, n_slots: int) -> Layer:
    """A layer of free seats; `copies` and `share` are still zero."""
    n_shards = room.size
    return Layer(
        room=room,
        host=host,
        share=np.zeros(n_experts),
        copies=np.zeros(n_experts, np.int64),
        homes=np.full((n_experts, n_shards), -1, np.int64),
        n_homes=np.zeros(n_experts, np.int64),
        seats=np.full((n_shards, n_slots), -1, np.int64),
        n_seats=np.zeros(n_shards, np.int64),
        on=np.zeros((n_experts, n_shards), np.bool_),
        common=np.zeros((n_shards, n_shards), np.int64),
        load=np.zeros(n_shards),
    )


def weigh(layer: Layer, share: Floats) -> None:
    """Set the load of one replica of each expert [E]."""
    layer.share[:] = share
    layer.load[:] = share @ layer.on


def worst_home(layer: Layer, expert: int) -> int:
    """Home to give up: most clashes, then most in common, then heaviest."""
    homes = layer.homes[expert, : layer.n_homes[expert]].tolist()
    return int(
        max(
            homes,
            key=lambda home: (
                clashes(layer, expert, home, -1),
                shared(layer, expert, home, -1),
                layer.load[home],
            ),
        )
    )


@jit
def place_expert(layer: Layer, expert: int, shard: int) -> None:
    """Seat one replica."""
    for i in range(layer.n_homes[expert]):
        other = layer.homes[expert, i]
        layer.common[shard, other] += 1
        layer.common[other, shard] += 1
    layer.homes[expert, layer.n_homes[expert]] = shard
    layer.n_homes[expert] += 1
    layer.seats[shard, layer.n_seats[shard]] = expert
    layer.n_seats[shard] += 1
    layer.on[expert, shard] = True
    layer.load[shard] += layer.share[expert]


@jit
def remove_expert(layer: Layer, expert: int, shard: int) -> None:
    """Free one replica's seat."""
    for i in range(layer.n_homes[expert]):
        if layer.homes[expert, i] == shard:
            layer.n_homes[expert] -= 1
            layer.homes[expert, i] = layer.homes[expert, layer.n_homes[expert]]
            break
    for i in range(layer.n_seats[shard]):
        if layer.seats[shard, i] == expert:
            layer.n_seats[shard] -= 1
            layer.seats[shard, i] = layer.seats[shard, layer.n_seats[shard]]
            break
    for i in range(layer.n_homes[expert]):
        other = layer.homes[expert, i]
        layer.common[shard, other] -= 1
        layer.common[other, shard] -= 1
    layer.on[expert, shard] = False
    layer.load[shard] -= layer.share[expert]


@jit
def clashes(layer: Layer, expert: int, shard: int, leaving: int) -> int:
    """Homes of the expert on the host of `shard`, but for `shard` itself and `leaving`."""
    found = 0
    for i in range(layer.n_homes[expert]):
        home = layer.homes[expert, i]
        same = layer.host[home] == layer.host[shard]
        if same and home != shard and home != leaving:
            found += 1
    return found


@jit
def shared(layer: Layer, expert: int, shard: int, leaving: int) -> int:
    """Experts that `shard` has in common with the expert's homes, but for itself and `leaving`."""
    found = 0
    for i in range(layer.n_homes[expert]):
        home = layer.homes[expert, i]
        if home != shard and home != leaving:
            found += layer.common[shard, home]
    return found


@jit
def best_seat(layer: Layer, expert: int) -> int:
    """Shard with room for another replica: fewest clashes, then least in common, then lightest.

    Returns -1 if every shard is full or has the expert.
    """
    best, best_clashes, best_shared = -1, 0, 0
    for shard in range(layer.room.size):
        if layer.n_seats[shard] >= layer.room[shard] or layer.on[expert, shard]:
            continue
        n_clashes = clashes(layer, expert, shard, -1)
        n_shared = shared(layer, expert, shard, -1)
        if (
            best < 0
            or n_clashes < best_clashes
            or (n_clashes == best_clashes and n_shared < best_shared)
            or (
                n_clashes == best_clashes
                and n_shared == best_shared
                and layer.load[shard] < layer.load[best]
            )
        ):
            best, best_clashes, best_shared = shard, n_clashes, n_shared
    return best


@jit
def seat_by_moving(layer: Layer, expert: int) -> bool:
    """Seat a replica although free seats are only where the expert is: others move up.

    Breadth-first search for an augmenting path over shards; false if there is none.
    """
    n_shards = layer.room.size
    before = np.full(n_shards, -2, np.int64)
    mover = np.full(n_shards, -1, np.int64)
    queue = np.empty(n_shards, np.int64)
    head, tail = 0, 0
    for shard in range(n_shards):
        if layer.room[shard] > 0 and not layer.on[expert, shard]:
            before[shard] = -1
            queue[tail] = shard
            tail += 1
    while head < tail:
        shard = queue[head]
        head += 1
        if layer.n_seats[shard] < layer.room[shard]:
            while before[shard] >= 0:
                remove_expert(layer, mover[shard], before[shard])
                place_expert(layer, mover[shard], shard)
                shard = before[shard]
            place_expert(layer, expert, shard)
            return True
        for i in range(layer.n_seats[shard]):
            other = layer.seats[shard, i]
            for target in range(n_shards):
                if before[target] == -2 and layer.room[target] > 0 and not layer.on[other, target]:
                    before[target] = shard
                    mover[target] = other
                    queue[tail] = target
                    tail += 1
    return False

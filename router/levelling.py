"""Compiled loops behind `placement`: better seats for one full layer, by swaps.

Goals in order: no two replicas of an expert on one host, few experts in common per pair of
shards, a low maximum load. A swap for a later goal may not cost an earlier one anything.
"""

import numpy as np

from router.jit import jit
from router.seating import Layer, clashes, place_expert, remove_expert, shared

_GAIN_RATIO = 0.002  # of the mean load; a swap must take this off the heaviest shard
_MOVE_GAIN_RATIO = 0.01  # the same where replicas are in place already: a swap costs two loads
_LEVEL_RATIO = 1.05  # maximum over mean that is good enough to leave replicas in place
_SWAPS_PER_SHARD = 4  # bound of a layer's swaps, so that time is bounded


@jit
def clash_change(layer: Layer, expert: int, source: int, target: int) -> int:
    """What moving the expert does to the number of replicas that share a host."""
    after: int = clashes(layer, expert, target, source)
    return after - clashes(layer, expert, source, -1)


@jit
def common_change(layer: Layer, expert: int, source: int, target: int) -> int:
    """Half of what moving the expert does to the sum of squared numbers in common."""
    others = int(layer.n_homes[expert]) - 1
    return others + shared(layer, expert, target, source) - shared(layer, expert, source, -1)


@jit
def seats_to_try(layer: Layer, target: int) -> int:
    """Seats of `target` worth a swap: its experts, and one more if there is room."""
    n_seats = int(layer.n_seats[target])
    return n_seats + 1 if n_seats < layer.room[target] else n_seats


@jit
def find_parting(layer: Layer, expert: int, shard: int) -> tuple[int, int]:
    """The expert to take in exchange (-1: a free seat) and its shard (-1: no swap helps)."""
    best_change, best_other, best_target = 0, -1, -1
    for target in range(layer.room.size):
        if layer.on[expert, target]:
            continue
        change = clash_change(layer, expert, shard, target)
        for j in range(seats_to_try(layer, target)):
            other = layer.seats[target, j] if j < layer.n_seats[target] else -1
            total = change
            if other >= 0:
                if layer.on[other, shard]:
                    continue
                total += clash_change(layer, other, target, shard)
            if total < best_change:
                best_change, best_other, best_target = total, other, target
    return best_other, best_target


@jit
def is_free_of_cost(layer: Layer, expert: int, shard: int, other: int, target: int) -> bool:
    """Whether a swap adds neither clashes nor experts in common."""
    n_clashes = clash_change(layer, expert, shard, target)
    n_common = common_change(layer, expert, shard, target)
    if other >= 0:
        n_clashes += clash_change(layer, other, target, shard)
        n_common += common_change(layer, other, target, shard)
    return n_clashes <= 0 and n_common <= 0


@jit
def find_lightening(layer: Layer, shard: int, least_gain: float) -> tuple[int, int, int]:
    """The swap that most lowers the heavier of `shard` and its partner.

    Returns the expert to give (-1: no swap helps), the one to take (-1: a free seat), its shard.
    """
    best_gain, best_expert, best_other, best_target = least_gain, -1, -1, -1
    for i in range(layer.n_seats[shard]):
        expert = layer.seats[shard, i]
        for target in range(layer.room.size):
            if layer.on[expert, target]:
                continue
            apart = layer.load[shard] - layer.load[target]
            if min(layer.share[expert], 0.5 * apart) <= best_gain:
                continue
            for j in range(seats_to_try(layer, target)):
                other = layer.seats[target, j] if j < layer.n_seats[target] else -1
                given = layer.share[expert]
                if other >= 0:
                    if layer.on[other, shard]:
                        continue
                    given -= layer.share[other]
                gain = min(given, apart - given)
                if gain > best_gain and is_free_of_cost(layer, expert, shard, other, target):
                    best_gain, best_expert, best_other, best_target = gain, expert, other, target
    return best_expert, best_other, best_target


def swap(layer: Layer, expert: int, shard: int, other: int, target: int) -> None:
    """Exchange two seats; `other` is -1 where the target has a free one."""
    remove_expert(layer, expert, shard)
    if other >= 0:
        remove_expert(layer, other, target)
        place_expert(layer, other, shard)
    place_expert(layer, expert, target)


def part_hosts(layer: Layer) -> None:
    """Swap replicas of an expert apart that share a host, where some swap reduces clashes."""
    if np.unique(layer.host).size in (1, layer.host.size):
        return
    for expert in range(layer.share.size):
        for shard in layer.homes[expert, : layer.n_homes[expert]].tolist():
            if layer.on[expert, shard] and clashes(layer, expert, shard, -1):
                other, target = find_parting(layer, expert, shard)
                if target >= 0:
                    swap(layer, expert, shard, other, target)


def level(layer: Layer, *, is_fresh: bool) -> None:
    """Swap replicas away from the heaviest shard until no swap helps, or it is not worth moves.

    is_fresh: nothing was in place before, so a swap costs nothing.
    """
    mean = float(layer.load.mean())
    least_gain = mean * (_GAIN_RATIO if is_fresh else _MOVE_GAIN_RATIO)
    enough = mean * (1.0 if is_fresh else _LEVEL_RATIO)
    for _ in range(_SWAPS_PER_SHARD * layer.room.size):
        shard = int(layer.load.argmax())
        if layer.load[shard] <= enough:
            break
        expert, other, target = find_lightening(layer, shard, least_gain)
        if expert < 0:
            break
        swap(layer, expert, shard, other, target)

"""The words in which moves are spoken: what to load where, and what to stop offering first."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.table import ShardId


@dataclass(frozen=True, slots=True, order=True)
class LoadExpert:
    """Instruction: load this expert into this slot, over whatever is there."""

    shard_id: ShardId
    layer: int
    slot: int
    expert: int


@dataclass(frozen=True, slots=True, order=True)
class Exclusion:
    """A replica that the next table leaves out, because its slot is to be overwritten."""

    shard_id: ShardId
    layer: int
    expert: int


@dataclass(frozen=True, slots=True)
class ShardSlots:
    """What one live shard has. Of two copies of an expert the one in the lower slot serves."""

    held: NDArray[np.int32]  # [L, S] experts that are ready, -1 elsewhere
    loading: tuple[LoadExpert, ...] = ()  # under way, and ordered but not reported yet

    def intact(self) -> NDArray[np.int32]:
        """[L, S] experts that are ready and that no load is about to overwrite."""
        intact = self.held.copy()
        for load in self.loading:
            intact[load.layer, load.slot] = -1
        return intact


def servable(
    shard_id: ShardId, slots: ShardSlots, exclusions: AbstractSet[Exclusion]
) -> dict[int, list[int]]:
    """What a table may offer of this shard: layer → experts, for `table.build_table`."""
    out: dict[int, list[int]] = {}
    for layer, row in enumerate(slots.intact()):
        experts = sorted({int(e) for e in row if e >= 0})
        out[layer] = [e for e in experts if Exclusion(shard_id, layer, e) not in exclusions]
    return out

"""The words in which moves are spoken: what to load where, and what to stop offering first."""

from collections.abc import Mapping
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
    shards: Mapping[ShardId, ShardSlots], exclusions: AbstractSet[Exclusion], *, n_experts: int
) -> NDArray[np.bool_]:
    """[S, L, E] bool, what a table may offer of each shard, in the order of `shards`."""
    offered = np.stack([held_experts(slots.intact(), n_experts) for slots in shards.values()])
    index = {shard_id: i for i, shard_id in enumerate(shards)}
    for exclusion in exclusions:
        if exclusion.shard_id in index:
            offered[index[exclusion.shard_id], exclusion.layer, exclusion.expert] = False
    return offered


def held_experts(slots: NDArray[np.int32], n_experts: int) -> NDArray[np.bool_]:
    """slots [L, S] int32, -1 for empty → [L, E] bool, which experts are in them."""
    held = np.zeros((slots.shape[0], n_experts + 1), dtype=np.bool_)
    held[np.arange(slots.shape[0])[:, None], slots] = True  # -1 is the last column
    return held[:, :-1]

"""The table: a versioned, immutable map from every (layer, expert) to the shards that hold it.

Built by the controller from what the shards report, published to every attention replica,
read by `choose`. Which slot of a shard holds the expert is the shard's own business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from router.errors import ConfigError

ShardId = NewType("ShardId", str)
"""Names one incarnation of a shard: a restarted shard gets another id."""

Holdings = Mapping[int, Sequence[int]]
"""What one shard can serve: MoE layer index → the experts in its slots, in any order."""


@dataclass(frozen=True, slots=True)
class ShardAddress:
    """Where a shard listens. An endpoint that is empty is not offered."""

    shard_id: ShardId
    host: str  # name of the Ray node; ipc endpoints work on the same host only
    ipc_endpoint: str = ""
    tcp_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaTable:
    """Version `version` of the map; arrays are read-only.

    shards: addresses; a shard's position here is its index in `holders`.
    holders: [L, E, R] int16; indices into `shards` of the replicas of each expert, then -1.
    counts: [L, E] int16; how many replicas each expert has.
    """

    version: int
    shards: tuple[ShardAddress, ...]
    holders: NDArray[np.int16]
    counts: NDArray[np.int16]

    @property
    def n_layers(self) -> int:
        return int(self.counts.shape[0])

    @property
    def n_experts(self) -> int:
        return int(self.counts.shape[1])

    @property
    def is_complete(self) -> bool:
        """Whether every expert of every layer has a replica."""
        return bool((self.counts > 0).all())

    def redundancy(self) -> int:
        """The smallest number of replicas that any expert has."""
        return int(self.counts.min()) if self.counts.size else 0

    def shards_of(self, layer: int, expert: int) -> tuple[ShardId, ...]:
        """Ids of the shards that hold `expert` of `layer`."""
        row = self.holders[layer, expert, : self.counts[layer, expert]]
        return tuple(self.shards[int(i)].shard_id for i in row)


def build_table(
    version: int,
    holdings: Sequence[tuple[ShardAddress, Holdings]],
    *,
    n_layers: int,
    n_experts: int,
) -> ReplicaTable:
    """Make the table of what the shards hold; the order of `holdings` gives shard indices.

    Raises ConfigError if a shard claims a layer or an expert that the model does not have.
    """
    holder_sets: list[list[list[int]]] = [[[] for _ in range(n_experts)] for _ in range(n_layers)]
    for index, (address, held) in enumerate(holdings):
        for layer, experts in held.items():
            for expert in set(experts):
                if not (0 <= layer < n_layers and 0 <= expert < n_experts):
                    raise ConfigError(
                        f"shard {address.shard_id} claims layer {layer} expert {expert}; the "
                        f"model has {n_layers} MoE layers of {n_experts} experts. Restart that "
                        "shard with this deployment's checkpoint."
                    )
                holder_sets[layer][expert].append(index)
    widest = max((len(h) for row in holder_sets for h in row), default=0)
    holders = np.full((n_layers, n_experts, max(widest, 1)), -1, dtype=np.int16)
    counts = np.zeros((n_layers, n_experts), dtype=np.int16)
    for layer, row in enumerate(holder_sets):
        for expert, indices in enumerate(row):
            holders[layer, expert, : len(indices)] = indices
            counts[layer, expert] = len(indices)
    holders.setflags(write=False)
    counts.setflags(write=False)
    return ReplicaTable(version, tuple(a for a, _ in holdings), holders, counts)

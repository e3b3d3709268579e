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
    held = np.zeros((len(holdings), n_layers, n_experts), dtype=np.bool_)
    for index, (address, layers) in enumerate(holdings):
        for layer, experts in layers.items():
            for expert in experts:
                if not (0 <= layer < n_layers and 0 <= expert < n_experts):
                    raise ConfigError(
                        f"shard {address.shard_id} claims layer {layer} expert {expert}; the "
                        f"model has {n_layers} MoE layers of {n_experts} experts. Restart that "
                        "shard with this deployment's checkpoint."
                    )
                held[index, layer, expert] = True
    return table_of(version, tuple(address for address, _ in holdings), held)


def table_of(
    version: int, shards: tuple[ShardAddress, ...], held: NDArray[np.bool_]
) -> ReplicaTable:
    """Make the table of what may be offered: held [S, L, E] bool, in the order of `shards`."""
    holders, counts = holders_of(held)
    holders.setflags(write=False)
    counts.setflags(write=False)
    return ReplicaTable(version, shards, holders, counts)


def holders_of(held: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """held [S, L, E] bool → holders [L, E, R] int16, -1 where there are fewer, counts [L, E]."""
    counts = held.sum(axis=0, dtype=np.int16)
    layer, expert, shard = np.nonzero(held.transpose(1, 2, 0))
    first = np.cumsum(counts.ravel(), dtype=np.int64) - counts.ravel()
    rank = np.arange(shard.size) - first.reshape(counts.shape)[layer, expert]
    holders = np.full((*counts.shape, max(int(counts.max(initial=0)), 1)), -1, dtype=np.int16)
    holders[layer, expert, rank] = shard
    return holders, counts

"""The cores that an attention replica and the shards of its host share while both compute."""

import os
from collections.abc import Sequence

from router.table import ReplicaTable, ShardId


def usable_cores() -> int:
    """Of this process."""
    return len(os.sched_getaffinity(0))


def shards_on(host: str, table: ReplicaTable) -> list[ShardId]:
    """Those of the table that are on this Ray node."""
    return [address.shard_id for address in table.shards if address.host == host]


def has_room(shards: Sequence[ShardId], *, threads: int, cores: int) -> bool:
    """Whether each of the host's shards finds a core beside the replica's threads."""
    return threads + len(shards) <= cores


def busy_threads(shards: Sequence[ShardId], *, threads: int) -> dict[ShardId, int]:
    """Each shard's share of the replica's threads, rounded up: so many cores it leaves to them."""
    return {shard_id: -(-threads // len(shards)) for shard_id in shards}

"""The cores that an attention replica and the shards of its host share while both compute."""

from collections.abc import Sequence

from router.table import ReplicaTable, ShardId


def shards_on(host: str, table: ReplicaTable) -> list[ShardId]:
    """Those of the table that are on this Ray node."""
    return [address.shard_id for address in table.shards if address.host == host]


def busy_threads(shards: Sequence[ShardId], *, threads: int) -> dict[ShardId, int]:
    """Each shard's share of the replica's threads, rounded up: so many cores it leaves to them."""
    return {shard_id: -(-threads // len(shards)) for shard_id in shards}

"""Who computes on a host's cores while a step runs in two halves."""

import numpy as np
import pytest

from router.table import ReplicaTable, ShardAddress, ShardId
from services.attention.cores import busy_threads, shards_on

ONE, TWO = [ShardId("a")], [ShardId("a"), ShardId("b")]


def test_only_shards_of_the_same_host_share_its_cores() -> None:
    shards = tuple(ShardAddress(ShardId(name), host) for name, host in ("ax", "by", "cx"))
    table = ReplicaTable(1, shards, np.zeros((1, 1, 1), np.int16), np.ones((1, 1), np.int16))
    assert shards_on("x", table) == ["a", "c"]


@pytest.mark.parametrize(
    ("shards", "threads", "expected"),
    [(ONE, 1, {"a": 1}), (TWO, 1, {"a": 1, "b": 1}), (TWO, 32, {"a": 16, "b": 16}), ([], 8, {})],
)
def test_shards_leave_the_replicas_threads_together(
    shards: list[ShardId], threads: int, expected: dict[str, int]
) -> None:
    assert busy_threads(shards, threads=threads) == expected

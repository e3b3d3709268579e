"""Shards that take longer are given less, until all take equally long."""

import numpy as np
import pytest

from router.choose import choose_shards
from router.service_times import ServiceTimes


def settle(seconds_per_row: list[float], *, layers: int = 400, fixed_s: float = 0.0) -> list[int]:
    """Rows of each shard in the end, if every shard holds every expert."""
    n = len(seconds_per_row)
    times = ServiceTimes(n)
    ids = np.arange(256, dtype=np.int32).reshape(64, 4) % 16
    holders = np.tile(np.arange(n, dtype=np.int16), (16, 1))
    counts = np.full(16, n, np.int16)
    rows = np.zeros(n, np.int64)
    for _ in range(layers):
        shards = choose_shards(ids, holders, counts, times.load())
        rows = np.bincount(shards.ravel(), minlength=n)
        seconds = rows * np.array(seconds_per_row) + fixed_s * (rows > 0)
        times.observe(np.stack([seconds, rows.astype(np.float64)]))
    return [int(r) for r in rows]


def test_equal_shards_get_equal_rows() -> None:
    assert settle([1e-4, 1e-4]) == [128, 128]


@pytest.mark.parametrize("slower", [1.5, 3.0, 7.0])
def test_a_slow_shard_gets_fewer_rows_in_proportion(slower: float) -> None:
    fast, slow = settle([1e-4, slower * 1e-4])
    assert fast / slow == pytest.approx(slower, rel=0.15)


def test_time_that_every_call_costs_changes_nothing() -> None:
    assert settle([1e-4, 1e-4, 1e-4, 1e-4], fixed_s=0.01) == [64, 64, 64, 64]


def test_a_shard_that_was_once_slow_is_forgiven_though_nobody_asks_it() -> None:
    times = ServiceTimes(2)
    for _ in range(20):
        times.observe(np.array([[0.01, 0.001], [10.0, 10.0]]))
    bad = times.load()[0]
    for _ in range(200):
        times.observe(np.array([[0.0, 0.001], [0.0, 10.0]]))
    assert bad > 1
    assert times.load()[0] < 0.01 * bad


def test_no_rows_and_no_time_are_no_news() -> None:
    times = ServiceTimes(2)
    times.observe(np.zeros((2, 2)))
    times.observe(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert times.load().tolist() == [0.0, 0.0]

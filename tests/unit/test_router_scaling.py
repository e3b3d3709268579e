"""How many shards and replicas are wanted: bounds, patience, and reasons."""

import numpy as np
import pytest

from router.placement import ShardRoom, place
from router.planning import ShardPace
from router.scaling import (
    AttentionLoad,
    Need,
    PoolLoad,
    ScalingLimits,
    ScalingState,
    attention_need,
    decide,
    least_shards,
    pool_load,
    pool_need,
)
from router.table import ShardId

LIMITS = ScalingLimits(least=2, most=6, grow_after_s=5, shrink_after_s=60)
A, B = ShardId("a"), ShardId("b")


def follow(needs: list[tuple[float, int]], state: ScalingState) -> list[int]:
    """(time, need) in turn → what was wanted after each."""
    wanted = []
    for now_s, count in needs:
        state = decide(state, Need(count, f"needs {count}"), LIMITS, now_s)
        wanted.append(state.wanted)
    return wanted


def test_it_grows_at_once_to_what_is_needed_when_the_need_has_lasted() -> None:
    assert follow([(0, 5), (4.9, 5), (5, 5), (6, 5)], ScalingState(2)) == [2, 2, 5, 5]


def test_a_need_that_flickers_changes_nothing() -> None:
    up = [(float(t), 5 if t % 2 else 2) for t in range(60)]
    assert set(follow(up, ScalingState(2))) == {2}
    down = [(float(t), 2 if t % 50 else 5) for t in range(500)]
    assert set(follow(down, ScalingState(5))) == {5}


def test_it_shrinks_to_the_highest_need_of_the_time_it_waited() -> None:
    assert follow([(0, 2), (30, 4), (59, 2), (60, 2)], ScalingState(5)) == [5, 5, 5, 4]


def test_the_reason_of_the_change_is_kept_until_the_next_one() -> None:
    state = decide(ScalingState(2), Need(3, "many rows"), LIMITS, 0)
    state = decide(state, Need(3, "many rows still"), LIMITS, 5)
    assert (state.wanted, state.reason) == (3, "many rows still")
    assert decide(state, Need(3, "as before"), LIMITS, 6).reason == "many rows still"


@pytest.mark.parametrize(("wanted", "bounded"), [(1, 2), (9, 6)])
def test_bounds_hold_at_once(wanted: int, bounded: int) -> None:
    state = decide(ScalingState(wanted), Need(3, ""), LIMITS, 0)
    assert (state.wanted, state.reason) == (bounded, "bounds are 2 to 6")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_asked_for_it_stays_in_bounds_and_changes_no_faster_than_allowed(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    state, now_s, changed_s = ScalingState(2), 0.0, -1e9
    for _ in range(400):
        now_s += float(rng.exponential(4))
        need = int(rng.integers(0, 10)) if rng.random() < 0.4 else 1
        after = decide(state, Need(need, "x"), LIMITS, now_s)
        assert LIMITS.least <= after.wanted <= LIMITS.most
        if after.wanted != state.wanted:
            waits_s = LIMITS.grow_after_s if after.wanted > state.wanted else LIMITS.shrink_after_s
            assert now_s - changed_s >= waits_s
            changed_s = now_s
        state = after


@pytest.mark.parametrize("seed", range(20))
def test_the_least_number_of_shards_has_room_and_one_fewer_has_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, redundancy = int(rng.integers(2, 40)), int(rng.integers(1, 4))
    slots = int(rng.integers(1, experts + 1))
    least = least_shards(experts, redundancy, slots)
    rooms = [ShardRoom(ShardId(str(i)), str(i), slots) for i in range(least)]
    placed = place(np.ones((1, experts)), rooms, redundancy=redundancy)
    held = np.concatenate([p[0] for p in placed.values()])
    assert (np.bincount(held[held >= 0], minlength=experts) >= redundancy).all()
    assert least - 1 < redundancy or (least - 1) * slots < experts * redundancy


def test_load_is_the_difference_of_totals_of_those_that_were_there_before() -> None:
    before = {A: ShardPace(rows=100, busy_s=1.0, queued_s=0.5)}
    after = {
        A: ShardPace(rows=300, busy_s=2.0, queued_s=1.5),
        B: ShardPace(rows=100, busy_s=1.0, queued_s=3.0),
    }
    load = pool_load(before, after, 10.0)
    assert load == PoolLoad(2, rows_per_s=20.0, capacity_rows_per_s=200.0, queue=0.05)
    assert pool_load(after, {A: after[A]}, 10.0) == PoolLoad(1, 0.0, 0.0, 0.0)
    assert pool_load({}, {}, 1.0) == PoolLoad(0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("load", "count", "reason"),
    [
        (PoolLoad(4, 0.0, 0.0, 0.0), 1, "0 rows/s"),
        (PoolLoad(2, 600.0, 1000.0, 0.0), 1, "600 rows/s, a shard can do 1000, aim 60%"),
        (PoolLoad(2, 601.0, 1000.0, 0.0), 2, "601 rows/s"),
        (PoolLoad(2, 3000.0, 1000.0, 0.0), 5, "3000 rows/s"),
        (PoolLoad(2, 600.0, 1000.0, 5.0), 5, "5.00 requests wait at a shard, aim 2"),
    ],
)
def test_shards_follow_rows_against_measured_capacity_and_the_queue(
    load: PoolLoad, count: int, reason: str
) -> None:
    need = pool_need(load, busy_ratio=0.6, queue=2.0)
    assert need.count == count
    assert reason in need.reason


@pytest.mark.parametrize(
    ("load", "count", "reason"),
    [
        (AttentionLoad(1, 0.0, 0.0), 1, "0 requests, aim 16 a replica"),
        (AttentionLoad(1, 17.0, 0.1), 2, "17 requests"),
        (AttentionLoad(2, 17.0, 0.9), 3, "90% of the KV cache in use, aim 80%"),
    ],
)
def test_replicas_follow_requests_and_the_kv_cache(
    load: AttentionLoad, count: int, reason: str
) -> None:
    need = attention_need(load, requests=16, kv_cache_ratio=0.8)
    assert need.count == count
    assert reason in need.reason

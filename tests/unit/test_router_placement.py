"""What a placement promises: distinct shards and hosts, few in common, level load, few moves."""

import itertools
import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.choose import mask_dead
from router.errors import ConfigError
from router.load import imbalance
from router.placement import ShardRoom, place
from router.table import ReplicaTable, ShardAddress, ShardId, build_table
from tests.support.loads import Floats, drifted, least_maximum

Placement = Mapping[ShardId, NDArray[np.int32]]
SEEDS = st.integers(0, 2**32 - 1)


def rooms(n_shards: int, slots: int, *, per_host: int = 1) -> list[ShardRoom]:
    return [ShardRoom(ShardId(f"s{i}"), f"h{i // per_host}", slots) for i in range(n_shards)]


def table_of(placed: Placement, n_experts: int) -> ReplicaTable:
    held = [
        (ShardAddress(s, ""), {layer: row[row >= 0].tolist() for layer, row in enumerate(slots)})
        for s, slots in placed.items()
    ]
    n_layers = next(iter(placed.values())).shape[0]
    return build_table(1, held, n_layers=n_layers, n_experts=n_experts)


def log_normal(seed: int, n_layers: int, n_experts: int) -> Floats:
    rng = np.random.default_rng(seed)
    return np.stack([drifted(rng, n_experts)[0] for _ in range(n_layers)])


def changed_slots(before: Placement, after: Placement) -> int:
    return sum(int((before[s] != after[s]).sum()) for s in before if s in after)


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[ShardRoom], int, int]:
    """Uneven shards on some hosts, with a number of experts and redundancy that fit."""
    sizes = draw(st.lists(st.integers(0, 9), min_size=2, max_size=7).filter(any))
    n_hosts = draw(st.integers(1, len(sizes)))
    shards = [ShardRoom(ShardId(f"s{i}"), f"h{i % n_hosts}", n) for i, n in enumerate(sizes)]
    redundancy = draw(st.integers(1, sum(n > 0 for n in sizes)))
    fitting = [
        e for e in range(1, 20) if sum(min(n, e) for n in sizes) >= e * redundancy
    ]  # one expert always fits
    return shards, draw(st.sampled_from(fitting)), redundancy


@given(pool=pools(), seed=SEEDS)
@settings(max_examples=120, deadline=None)
def test_whatever_fits_is_placed_with_distinct_shards_and_no_useful_slot_empty(
    pool: tuple[list[ShardRoom], int, int], seed: int
) -> None:
    shards, n_experts, redundancy = pool
    rng = np.random.default_rng(seed)
    current = {  # anything at all: repeated experts, strangers, other widths
        s.shard_id: rng.integers(-1, n_experts + 2, (2, rng.integers(0, 8))).astype(np.int32)
        for s in shards
    }
    for held in (None, current):
        placed = place(
            rng.exponential(size=(2, n_experts)), shards, redundancy=redundancy, current=held
        )
        assert table_of(placed, n_experts).redundancy() >= redundancy
        for shard in shards:
            slots = placed[shard.shard_id]
            assert slots.shape == (2, shard.slots_per_layer) and slots.dtype == np.int32
            for row in slots:
                filled = row[row >= 0]
                assert np.unique(filled).size == filled.size <= n_experts
                assert filled.size == min(shard.slots_per_layer, n_experts)


@pytest.mark.parametrize(
    ("sizes", "n_experts"), [([5, 3, 3, 3], 7), ([1, 1, 3], 2), ([3, 1, 5, 3], 6)]
)
def test_seated_experts_move_up_where_the_last_free_slots_are_on_one_shard(
    sizes: list[int], n_experts: int
) -> None:
    shards = [ShardRoom(ShardId(f"s{i}"), f"h{i}", n) for i, n in enumerate(sizes)]
    placed = place(np.arange(n_experts, 0, -1, dtype=np.float64)[None], shards, redundancy=2)
    assert table_of(placed, n_experts).redundancy() == 2


@given(seed=SEEDS, n_hosts=st.integers(2, 4), per_host=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_two_copies_sit_on_two_hosts(seed: int, n_hosts: int, per_host: int) -> None:
    n_shards = n_hosts * per_host
    n_experts = 3 * n_shards
    placed = place(
        log_normal(seed, 2, n_experts), rooms(n_shards, 6, per_host=per_host), redundancy=2
    )
    table = table_of(placed, n_experts)
    hosts = table.holders // per_host
    assert (hosts[..., 0] != hosts[..., 1]).all()


@pytest.mark.parametrize(("n_shards", "most"), [(8, 10), (16, 4), (32, 3)])
def test_two_copies_leave_few_experts_in_common_to_any_two_shards(n_shards: int, most: int) -> None:
    # 256 experts over the pairs of 8, 16, 32 shards: 9.1, 2.1, 0.5 a pair; mirrors would have 64
    placed = place(log_normal(0, 2, 256), rooms(n_shards, 512 // n_shards), redundancy=2)
    for layer in range(2):
        held = [set(slots[layer].tolist()) for slots in placed.values()]
        common = [len(a & b) for a, b in itertools.combinations(held, 2)]
        assert max(common) <= most


@pytest.mark.parametrize("n_shards", [8, 16, 32])
def test_one_death_costs_the_survivors_only_its_share(n_shards: int) -> None:
    rng = np.random.default_rng(n_shards)
    for _ in range(2):
        seen, later = drifted(rng, 256)
        placed = place(seen[None], rooms(n_shards, 512 // n_shards), redundancy=2)
        table = table_of(placed, 256)
        for dead in rng.choice(n_shards, 4, replace=False):
            holders, counts = mask_dead(
                table.holders[0], table.counts[0], np.arange(n_shards) == dead
            )
            heaviest = least_maximum(later, holders, counts, np.zeros(n_shards))
            assert heaviest <= 1.05 * later.sum() / (n_shards - 1)


@pytest.mark.parametrize(("n_shards", "slots"), [(8, 36), (32, 9)])
def test_an_even_split_of_288_slots_is_level(n_shards: int, slots: int) -> None:
    loads = log_normal(1, 4, 256)
    table = table_of(place(loads, rooms(n_shards, slots), redundancy=1), 256)
    assert imbalance(loads, table.holders, table.counts).max() < 1.02


def test_surplus_slots_go_to_hot_experts() -> None:
    loads = np.array([[100.0, 50.0, 1.0, 1.0]])
    table = table_of(place(loads, rooms(4, 2), redundancy=1), 4)
    # greedy on load / copies: 100 -> 50 -> 33, 50 -> 25, so 4 surplus slots make 4 + 2 + 1 + 1
    assert table.counts.tolist() == [[4, 2, 1, 1]]


def test_a_layer_without_load_is_placed_as_if_even() -> None:
    table = table_of(place(np.zeros((1, 4)), rooms(4, 2), redundancy=1), 4)
    assert table.counts.tolist() == [[2, 2, 2, 2]]


def test_layers_are_independent() -> None:
    loads = log_normal(2, 3, 24)
    whole = place(loads, rooms(4, 9), redundancy=1)
    alone = place(loads[1:2], rooms(4, 9), redundancy=1)
    for shard_id, slots in whole.items():
        np.testing.assert_array_equal(slots[1:2], alone[shard_id])


def test_the_same_question_has_the_same_answer_and_leaves_its_arguments_alone() -> None:
    loads = log_normal(3, 2, 32)
    first = place(loads, rooms(6, 8), redundancy=1)
    kept = {s: slots.copy() for s, slots in first.items()}
    second = place(loads * 2, rooms(6, 8), redundancy=1, current=first)
    third = place(loads * 2, rooms(6, 8), redundancy=1, current=first)
    for shard_id in first:
        np.testing.assert_array_equal(first[shard_id], kept[shard_id])
        np.testing.assert_array_equal(second[shard_id], third[shard_id])


def test_what_is_in_place_and_good_stays_as_it_is() -> None:
    loads = log_normal(4, 3, 64)
    placed = place(loads, rooms(8, 18), redundancy=2)
    again = place(loads, rooms(8, 18), redundancy=2, current=placed)
    assert changed_slots(placed, again) == 0


def test_a_layer_that_is_level_enough_is_left_alone() -> None:
    loads = log_normal(4, 3, 64)
    placed = place(loads, rooms(8, 18), redundancy=2)
    noise = np.random.default_rng(0).uniform(0.93, 1.07, loads.shape)
    table = table_of(placed, 64)
    assert 1.015 < imbalance(loads * noise, table.holders, table.counts).max() < 1.05
    again = place(loads * noise, rooms(8, 18), redundancy=2, current=placed)
    assert changed_slots(placed, again) == 0


def test_an_expert_that_stays_on_its_shard_stays_in_its_slot() -> None:
    placed = place(log_normal(5, 3, 64), rooms(8, 18), redundancy=2)
    drifted_loads = log_normal(6, 3, 64)
    after = place(drifted_loads, rooms(8, 18), redundancy=2, current=placed)
    assert changed_slots(placed, after) > 0
    for shard_id, slots in placed.items():
        for layer, slot in np.argwhere(slots >= 0):
            expert = slots[layer, slot]
            if expert in after[shard_id][layer]:
                assert after[shard_id][layer, slot] == expert


def test_after_a_death_about_as_many_experts_move_as_were_lost() -> None:
    loads = log_normal(7, 4, 64)
    placed = place(loads, rooms(8, 20), redundancy=2)
    survivors = rooms(8, 20)[1:]
    after = place(loads, survivors, redundancy=2, current=placed)
    assert table_of(after, 64).redundancy() == 2
    assert changed_slots(placed, after) <= 1.5 * 4 * 20


def test_a_new_shard_is_filled_and_shares_the_load() -> None:
    loads = log_normal(8, 4, 64)
    placed = place(loads, rooms(8, 16), redundancy=2)
    after = place(loads, rooms(9, 16), redundancy=2, current=placed)
    assert (after[ShardId("s8")] >= 0).all()
    table = table_of(after, 64)
    assert imbalance(loads, table.holders, table.counts).max() < 1.15


@pytest.mark.parametrize(
    ("n_shards", "slots", "redundancy", "message"),
    [
        (1, 99, 2, r"redundancy 2 needs 2 shards with slots, have 1\. Add shards"),
        (4, 3, 2, r"8 experts x redundancy 2 need 16 slots a layer, have 12 on 4 shards\. Add"),
        (2, 50, 3, r"needs 3 shards with slots, have 2"),
        (2, 7, 2, r"need 16 slots a layer, have 14"),
        (4, 4, 0, r"redundancy is 0; it must be at least 1"),
        (4, 0, 1, r"needs 1 shards with slots, have 0"),
    ],
)
def test_too_little_room_is_refused_with_numbers(
    n_shards: int, slots: int, redundancy: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        place(np.ones((1, 8)), rooms(n_shards, slots), redundancy=redundancy)


def test_slots_beyond_one_of_each_expert_do_not_count_as_room() -> None:
    shards = [ShardRoom(ShardId("big"), "h", 100), ShardRoom(ShardId("small"), "h", 2)]
    with pytest.raises(ConfigError, match="need 8 slots a layer, have 6 on 2 shards"):
        place(np.ones((1, 4)), shards, redundancy=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_shards", "slots", "limit_s"), [(128, 7, 20), (1000, 1, 120)], ids=["128", "1000"]
)
def test_a_large_model_is_placed_in_time(n_shards: int, slots: int, limit_s: float) -> None:
    loads = log_normal(9, 61, 384)
    place(np.ones((1, 8)), rooms(4, 4), redundancy=2)  # compile
    start_s = time.perf_counter()
    placed = place(loads, rooms(n_shards, slots, per_host=8), redundancy=2)
    assert time.perf_counter() - start_s < limit_s
    assert table_of(placed, 384).redundancy() == 2

"""EPLB as published, and what our placement does that it does not."""

import numpy as np
import pytest

from router.eplb import pack_evenly, place_like_eplb, replicate
from router.load import imbalance
from router.placement import ShardRoom, place
from router.table import ReplicaTable, ShardAddress, ShardId, build_table
from tests.support.loads import Floats, drifted

PUBLISHED_LOADS = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    dtype=np.float64,
)
PUBLISHED_SHARDS = [
    [{5, 6}, {5, 7}, {8, 4}, {3, 4}, {10, 9}, {10, 2}, {0, 1}, {11, 1}],
    [{7, 10}, {6, 8}, {6, 11}, {8, 9}, {2, 4}, {5, 1}, {5, 0}, {3, 1}],
]


def table_of(shards: np.ndarray, n_experts: int) -> ReplicaTable:
    """shards: [L, S, M] experts."""
    held = [
        (ShardAddress(ShardId(f"s{s}"), ""), dict(enumerate(shards[:, s].tolist())))
        for s in range(shards.shape[1])
    ]
    return build_table(1, held, n_layers=shards.shape[0], n_experts=n_experts)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_published_example_comes_out_per_shard(layer: int) -> None:
    placed = place_like_eplb(PUBLISHED_LOADS, n_slots=16, n_shards=8, n_groups=4, n_hosts=2)
    assert [set(slots.tolist()) for slots in placed[layer]] == PUBLISHED_SHARDS[layer]


def test_groups_that_hosts_do_not_divide_are_ignored() -> None:
    uneven = place_like_eplb(PUBLISHED_LOADS, n_slots=16, n_shards=8, n_groups=3, n_hosts=2)
    plain = place_like_eplb(PUBLISHED_LOADS, n_slots=16, n_shards=8)
    np.testing.assert_array_equal(uneven, plain)


def test_packs_have_the_same_number_of_items() -> None:
    packs = pack_evenly(np.array([9.0, 1.0, 1.0, 1.0, 5.0, 4.0]), 2)
    assert [sorted(pack) for pack in packs] == [[0, 1, 3], [2, 4, 5]]


def test_the_expert_with_the_heaviest_copy_is_copied_again() -> None:
    experts, copies = replicate(np.array([90.0, 40.0, 10.0]), 6)
    assert experts.tolist() == [0, 1, 2, 0, 0, 1] and copies.tolist() == [3, 2, 1]


def log_normal(n_layers: int) -> Floats:
    rng = np.random.default_rng(11)
    return np.stack([drifted(rng, 256)[0] for _ in range(n_layers)])


@pytest.mark.parametrize("n_shards", [8, 32])
def test_our_placement_is_as_level_as_eplb(n_shards: int) -> None:
    loads = log_normal(4)
    theirs = table_of(place_like_eplb(loads, n_slots=288, n_shards=n_shards), 256)
    rooms = [ShardRoom(ShardId(f"s{i}"), f"h{i}", 288 // n_shards) for i in range(n_shards)]
    ours = table_of(np.stack(list(place(loads, rooms, redundancy=1).values()), axis=1), 256)
    level = [imbalance(loads, t.holders, t.counts).mean() for t in (ours, theirs)]
    assert level[0] <= level[1] + 0.005


def test_eplb_leaves_experts_with_one_home_where_ours_has_two() -> None:
    loads = log_normal(1)
    theirs = table_of(place_like_eplb(loads, n_slots=512, n_shards=16), 256)
    rooms = [ShardRoom(ShardId(f"s{i}"), f"h{i}", 32) for i in range(16)]
    ours = table_of(np.stack(list(place(loads, rooms, redundancy=2).values()), axis=1), 256)
    assert theirs.redundancy() == 1 and ours.redundancy() == 2

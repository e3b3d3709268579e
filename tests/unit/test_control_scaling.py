"""Shards come and go because the load wants it: nothing is lost, and nobody waits."""

import numpy as np
import pytest

from tests.support.control_cluster import EXPERTS, LAYERS, Cluster, FakeShard, cluster


def grown(n_shards: int, n_slots: int, redundancy: int) -> Cluster:
    c = cluster(n_shards, n_slots, redundancy)
    c.settle()
    assert c.redundancy() >= redundancy
    return c


def names_offered(c: Cluster) -> set[str]:
    assert c.state.table is not None
    return {str(a.shard_id) for a in c.state.table.shards}


def test_a_new_shard_is_filled_though_more_are_expected() -> None:
    c = grown(2, 4, 1)
    c.state.placer.expected = 4
    c.shards.append(FakeShard("s2", 4))
    c.settle()
    assert (c.shards[2].held >= 0).any()
    assert any("s2" in c.holders(layer, e) for layer in range(LAYERS) for e in range(EXPERTS))


@pytest.mark.parametrize(
    ("n_slots", "redundancy", "n_leaving"), [(4, 2, 1), (2, 1, 1), (4, 2, 2), (2, 1, 2)]
)
def test_leaving_shards_go_when_the_others_have_what_they_held(
    n_slots: int, redundancy: int, n_leaving: int
) -> None:
    c = grown(4, n_slots, redundancy)
    leaving = c.shards[:n_leaving]
    for shard in leaving:
        shard.is_leaving = True
    c.state.placer.expected = 4 - n_leaving
    for _ in range(60):
        c.turn()
        assert c.redundancy() >= redundancy
        for shard in leaving:
            assert not (shard.has_left and shard.name in names_offered(c))
    assert all(shard.has_left for shard in leaving)
    assert names_offered(c) == {shard.name for shard in c.shards[n_leaving:]}


def test_a_leaving_shard_waits_until_every_reader_does_without_it() -> None:
    c = grown(3, 4, 2)
    c.shards[0].is_leaving = True
    for _ in range(40):
        c.turn()
        c.reader_version = 1  # an attention replica that adopts nothing
    assert not c.shards[0].has_left
    c.settle()
    assert c.shards[0].has_left


def test_a_shard_stays_as_long_as_there_is_no_room_for_what_it_holds() -> None:
    c = grown(2, 2, 1)  # four experts, two slots each
    c.shards[0].is_leaving = True
    for _ in range(40):
        c.turn()
    assert not c.shards[0].has_left
    assert c.state.table is not None
    assert c.state.table.is_complete


def test_a_shard_that_dies_meanwhile_does_not_take_the_last_copies_with_it() -> None:
    c = grown(3, 4, 2)
    c.shards[0].is_leaving = True
    c.turn()
    c.shards.pop(2)
    for _ in range(40):
        c.turn()
    assert c.state.table is not None
    assert c.state.table.is_complete
    assert c.shards[0].has_left  # one shard is left, on which there is room once
    assert names_offered(c) == {"s1"}


def test_when_all_leave_the_application_is_ending_and_nobody_waits() -> None:
    c = grown(2, 4, 2)
    for shard in c.shards:
        shard.is_leaving = True
    c.turn()
    c.turn()
    assert all(shard.has_left for shard in c.shards)


def test_a_shard_that_does_not_hear_that_it_may_go_is_told_again() -> None:
    c = grown(3, 4, 2)
    c.shards[0].is_leaving = True
    c.settle()
    assert c.shards[0].has_left
    c.shards[0].has_left = False
    c.settle()
    assert c.shards[0].has_left
    assert "s0" not in names_offered(c)
    assert np.all(c.state.placer.target[c.shards[1].id] >= 0)

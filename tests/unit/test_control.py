"""The controller's decisions from reports alone, with a clock that the test holds."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from router.control import ControlSettings, ControlState
from router.moves import LoadExpert
from router.table import ShardAddress, ShardId

LAYERS, EXPERTS = 2, 4
Slots = np.ndarray


def settings(shards: int = 2, redundancy: int = 1) -> ControlSettings:
    return ControlSettings(
        shards=shards, redundancy=redundancy, lease_s=5, settle_s=2, replacement_grace_s=60
    )


@dataclass
class FakeShard:
    """Does what it is told, one report later."""

    name: str
    n_slots: int
    held: Slots = field(init=False)
    loading: tuple[LoadExpert, ...] = ()

    def __post_init__(self) -> None:
        self.held = np.full((LAYERS, self.n_slots), -1, np.int32)

    @property
    def id(self) -> ShardId:
        return ShardId(self.name)

    def report(self, state: ControlState, now_s: float) -> None:
        orders = state.on_shard(
            ShardAddress(self.id, "host"),
            n_experts=EXPERTS,
            held=self.held.copy(),
            loading=self.loading,
            now_s=now_s,
        )
        self.loading += tuple(o for o in orders if o not in self.loading)

    def load(self) -> None:
        """Finish what it is loading."""
        for order in self.loading:
            self.held[order.layer, order.slot] = order.expert
        self.loading = ()


@dataclass
class Cluster:
    """A controller and its shards."""

    state: ControlState
    shards: list[FakeShard]
    now_s: float = 0.0
    reader_version: int = 0

    def turn(self, seconds: float = 0.5) -> None:
        """Everybody reports once, and loads what it was told."""
        self.now_s += seconds
        for shard in self.shards:
            shard.report(self.state, self.now_s)
            shard.load()
        if self.state.table is not None:
            self.state.on_reader("reader", self.reader_version, {}, now_s=self.now_s)
            self.reader_version = self.state.table.version

    def settle(self) -> None:
        for _ in range(12):
            self.turn()

    def holders(self, layer: int, expert: int) -> set[str]:
        assert self.state.table is not None
        return set(self.state.table.shards_of(layer, expert))


def cluster(n_shards: int = 2, n_slots: int = 2, redundancy: int = 1) -> Cluster:
    shards = [FakeShard(f"s{i}", n_slots) for i in range(n_shards)]
    return Cluster(ControlState(settings(n_shards, redundancy)), shards)


def test_the_first_table_comes_when_every_expert_is_in_place() -> None:
    c = cluster()
    c.turn()
    assert c.state.waiting_for == "experts: 0 of 8 in place on 2 shards"
    c.settle()
    assert c.state.table is not None
    assert c.state.table.is_complete
    assert c.state.waiting_for == ""


def test_nothing_is_placed_before_the_expected_shards_have_come() -> None:
    c = cluster()
    early, late = c.shards
    c.shards = [early]
    for _ in range(20):
        c.turn()
    assert c.state.waiting_for == "shards: 1 of 2 have reported"
    assert (early.held < 0).all()
    c.shards.append(late)
    c.settle()
    assert c.state.table is not None


def test_with_redundancy_two_every_expert_is_on_two_shards() -> None:
    c = cluster(n_shards=3, n_slots=3, redundancy=2)
    c.settle()
    assert c.state.table is not None
    assert c.state.table.redundancy() == 2
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            assert len(c.holders(layer, expert)) >= 2


def test_a_table_that_says_nothing_new_is_not_published() -> None:
    c = cluster()
    c.settle()
    assert c.state.table is not None
    version = c.state.table.version
    c.settle()
    assert c.state.table.version == version


def test_a_shard_that_a_reader_lost_is_out_of_the_table_until_it_reports_again() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    c.state.on_reader("reader", c.reader_version, {ShardId("s0"): "no answer"}, now_s=c.now_s)
    assert c.holders(0, 0) == {"s1"}
    c.turn()
    assert c.holders(0, 0) == {"s0", "s1"}


def test_a_silent_shard_is_dropped_when_its_lease_ends() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    c.shards.pop(0)
    c.turn(4.9)
    assert ShardId("s0") in c.state.shards
    c.turn(0.2)
    assert ShardId("s0") not in c.state.shards
    assert c.holders(1, 3) == {"s1"}


def test_a_new_shard_gets_what_the_dead_one_had_and_redundancy_is_back() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    c.shards.pop(0)
    c.turn(6)
    assert c.state.table is not None
    assert c.state.table.redundancy() == 1
    c.shards.append(FakeShard("s2", 4))
    c.settle()
    assert c.state.table.redundancy() == 2
    assert c.holders(0, 0) == {"s1", "s2"}


def test_without_a_replica_left_the_experts_go_where_there_is_room_at_once() -> None:
    c = cluster(n_shards=2, n_slots=4, redundancy=1)
    c.settle()
    c.shards.pop(0)
    c.turn(6)
    c.settle()
    assert c.state.table is not None
    assert c.state.table.is_complete
    assert c.holders(0, 0) == {"s1"}


def test_while_replicas_are_left_nothing_moves_until_the_grace_is_over() -> None:
    c = cluster(n_shards=3, n_slots=3, redundancy=2)
    c.settle()
    before = {s.name: s.held.copy() for s in c.shards[1:]}
    c.shards.pop(0)
    c.turn(6)
    c.settle()
    for shard in c.shards:
        assert np.array_equal(shard.held, before[shard.name])


def test_lost_experts_that_fit_nowhere_leave_the_table_incomplete_and_say_so() -> None:
    c = cluster()  # just enough slots
    c.settle()
    c.shards.pop(0)
    c.turn(6)
    assert c.state.table is not None
    assert not c.state.table.is_complete
    assert "needs" in c.state.waiting_for or "no live shard" in c.state.waiting_for


def test_a_restarted_controller_learns_the_state_and_publishes_above_what_is_in_use() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    c.reader_version = 41
    held = {s.name: s.held.copy() for s in c.shards}
    c.state = ControlState(settings(2, 2))
    c.state.on_reader("reader", 41, {}, now_s=c.now_s)
    c.settle()
    assert c.state.table is not None
    assert c.state.table.version > 41
    assert c.state.table.redundancy() == 2
    for shard in c.shards:
        assert np.array_equal(shard.held, held[shard.name]), "nothing had to move"


def test_a_restarted_controller_does_not_judge_by_the_first_shard_that_reports() -> None:
    c = cluster()
    c.settle()
    c.state = ControlState(settings())
    c.shards[0].report(c.state, c.now_s + 0.1)
    assert c.shards[0].loading == ()
    assert c.state.table is None


@pytest.mark.parametrize("n_shards", [1, 3])
def test_orders_are_given_once(n_shards: int) -> None:
    c = cluster(n_shards=n_shards, n_slots=4)
    for shard in c.shards * 2:
        shard.report(c.state, 1.0)
    for shard in c.shards:
        orders = shard.loading
        assert orders
        shard.report(c.state, c.now_s)
        assert shard.loading == orders

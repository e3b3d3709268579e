"""The controller's decisions from reports alone, with a clock that the test holds."""

import time

import numpy as np
import pytest

from router import planning
from router.control import REPAIR_REST_RATIO, REST_RATIO, ControlState
from router.members import MAX_COMPLAINTS
from router.table import ShardAddress, ShardId
from tests.support.control_cluster import EXPERTS, LAYERS, Cluster, FakeShard, cluster, settings


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
    assert ShardId("s0") in c.state.members.shards
    c.turn(0.2)
    assert ShardId("s0") not in c.state.members.shards
    assert c.holders(1, 3) == {"s1"}


def test_a_shard_rests_between_loads_the_less_the_more_is_missing() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.turn()
    assert c.shards[0].rest_ratio == 0, "not every expert is there"
    c.settle()
    assert c.shards[0].rest_ratio == REST_RATIO
    c.shards.pop(0)
    c.turn(6)
    c.turn()
    assert c.shards[0].rest_ratio == REPAIR_REST_RATIO


def test_a_replica_that_is_still_starting_holds_up_no_moves() -> None:
    c = cluster()
    c.state.on_reader("starting", 0, {}, now_s=0.0)
    assert c.state.readers == {}


def test_one_stall_that_three_replicas_meet_is_one_complaint() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    for reader in ("one", "two", "three"):
        c.state.on_reader(reader, c.reader_version, {ShardId("s0"): "slow"}, now_s=c.now_s)
        c.turn()
    assert c.shards[0].expelled == ""


def test_the_only_holder_is_not_sent_away_however_many_complain() -> None:
    c = cluster()
    c.settle()
    for _ in range(MAX_COMPLAINTS + 1):
        c.state.on_reader("reader", c.reader_version, {ShardId("s0"): "slow"}, now_s=c.now_s)
        for _ in range(5):
            c.turn(4)
    assert c.shards[0].expelled == ""


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
    assert "need 4 slots a layer, have 2 on 1 shards. Add shards" in c.state.waiting_for


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
    for shard in c.shards:
        shard.report(c.state, c.now_s)
    c.place()
    for shard in c.shards:
        shard.report(c.state, c.now_s)
    for shard in c.shards:
        orders = shard.loading
        assert orders
        shard.report(c.state, c.now_s)
        assert shard.loading == orders


def rows(*hot: int) -> np.ndarray:
    """The gate's choices of a while: these experts, each 1,000 times, in every layer."""
    counts = np.full((LAYERS, EXPERTS), 10, np.int64)
    counts[:, list(hot)] = 1000
    return counts


def loaded(move_cost_rows: float = 0.0, **more: float) -> Cluster:
    """Two shards with one slot to spare each."""
    c = cluster(n_slots=3)
    options = {"rebalance_interval_s": 10.0, "load_half_life_s": 5.0, **more}
    c.state = ControlState(settings(2, 1, **options))
    c.move_cost_rows = move_cost_rows
    c.settle()
    return c


def drive(c: Cluster, hot: tuple[int, ...], seconds: float) -> None:
    for _ in range(round(seconds / 0.5)):
        c.state.on_reader("reader", c.reader_version, {}, now_s=c.now_s, expert_rows=rows(*hot))
        c.turn()


def test_load_that_has_shifted_is_followed_within_a_minute() -> None:
    c = loaded()
    for hot in ((c.single(),), (0, 1), (2,), (1, 3)):
        drive(c, hot, 60)
        imbalance = c.state.imbalance(c.now_s)
        assert imbalance is not None
        assert imbalance < 1.1, f"hot experts {hot}"
        assert c.state.placer.moves_left == 0
    assert c.state.placer.last is not None
    assert c.state.placer.last.job.cause == planning.LOADS_CHANGED


def test_a_rebalance_that_costs_more_than_it_saves_is_refused_with_its_reason() -> None:
    c = loaded(move_cost_rows=1e9)
    held = {s.name: s.held.copy() for s in c.shards}
    drive(c, (c.single(),), 30)
    assert c.state.placer.last is not None
    decision = c.state.placer.last.decision
    assert not decision.accepted
    assert "rows on the most loaded shards, moves cost" in decision.reason
    for shard in c.shards:
        assert np.array_equal(shard.held, held[shard.name])


def test_what_is_asked_for_is_done_whatever_it_costs() -> None:
    c = loaded(move_cost_rows=1e9)
    hot = (c.single(),)
    drive(c, hot, 30)
    assert c.state.imbalance(c.now_s) > 1.3  # type: ignore[operator]
    c.state.placer.ask()
    drive(c, hot, 5)
    assert c.state.imbalance(c.now_s) < 1.1  # type: ignore[operator]
    assert c.state.placer.last is not None
    assert c.state.placer.last.job.cause == planning.ASKED


def test_what_is_asked_for_waits_for_moves_under_way() -> None:
    c = loaded(move_cost_rows=0)
    placer = c.state.placer
    while not placer.moves_left:
        drive(c, (c.single(),), 1)
    placer.ask()
    assert c.state.placement_due(c.now_s) is None
    drive(c, (c.single(),), 5)
    assert placer.last is not None
    assert placer.last.job.cause == planning.ASKED


def test_without_an_interval_only_members_move_experts() -> None:
    c = cluster(n_slots=3)
    c.settle()
    for hot in ((0, 1), (2, 3)):
        drive(c, hot, 60)
    assert c.state.placer.last is not None
    assert c.state.placer.last.job.cause == planning.MEMBERS_CHANGED


def test_a_shard_that_answers_wrongly_is_sent_away_and_does_not_come_back() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    wrong = {ShardId("s0"): "answered NaN"}
    c.state.on_reader("reader", c.reader_version, {}, now_s=c.now_s, wrong=wrong)
    assert c.holders(0, 0) == {"s1"}
    c.turn()
    assert c.shards[0].expelled == "answered NaN"
    assert c.holders(0, 0) == {"s1"}


def test_a_shard_that_reports_but_never_answers_is_sent_away_in_the_end() -> None:
    c = cluster(n_slots=4, redundancy=2)
    c.settle()
    for _ in range(MAX_COMPLAINTS):
        assert c.shards[0].expelled == ""
        c.state.on_reader("reader", c.reader_version, {ShardId("s0"): "silent"}, now_s=c.now_s)
        for _ in range(5):
            c.turn(4)
    assert "3 complaints within 300 s, the last: silent" in c.shards[0].expelled


def test_a_new_shard_is_filled_though_nothing_else_would_pay() -> None:
    c = cluster(n_shards=2, n_slots=4, redundancy=1)
    c.move_cost_rows = 1e9
    c.settle()
    c.shards.append(FakeShard("s2", 4))
    c.settle()
    assert (c.shards[-1].held >= 0).any()


def test_a_report_that_says_nothing_new_costs_almost_nothing() -> None:
    """61 layers x 384 experts on 128 shards, each of which reports twice a second."""
    layers, experts, shards, slots = 61, 384, 128, 6
    state = ControlState(settings(shards, 2))
    held = [
        np.tile((np.arange(slots, dtype=np.int32) + i * 3) % experts, (layers, 1))
        for i in range(shards)
    ]

    def report(i: int, now_s: float) -> None:
        address = ShardAddress(ShardId(f"s{i:03}"), "host")
        state.on_shard(address, n_experts=experts, held=held[i], loading=(), now_s=now_s)

    for i in range(shards):
        report(i, 0.0)
    assert state.table is not None
    assert state.table.is_complete
    started_s = time.perf_counter()
    for i in range(shards):
        report(i, 0.5)
    each_s = (time.perf_counter() - started_s) / shards
    assert each_s < 0.5 / shards, "the reports of half a second must not take longer than that"

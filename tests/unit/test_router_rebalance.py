"""When another placement is accepted, and why not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.placement import ShardRoom, place
from router.rebalance import decide, improved_layers
from router.table import ShardId

A, B = ShardId("a"), ShardId("b")


def one_layer(**rows: list[int]) -> dict[ShardId, NDArray[np.int32]]:
    return {ShardId(s): np.array([row], dtype=np.int32) for s, row in rows.items()}


SKEWED = one_layer(a=[0, 1], b=[2, 3])
LEVEL = one_layer(a=[0, 2], b=[1, 3])
LOADS = np.array([[60.0, 40.0, 10.0, 10.0]])  # SKEWED: 100 and 20; LEVEL: 70 and 50


@pytest.mark.parametrize(
    ("move_cost_rows", "accepted"), [(0.0, True), (29.0, True), (30.0, False), (1000.0, False)]
)
def test_a_rebalance_must_save_more_than_its_moves_cost(
    move_cost_rows: float, accepted: bool
) -> None:
    verdict = decide(SKEWED, LEVEL, LOADS, redundancy=1, move_cost_rows=move_cost_rows)
    assert verdict.accepted is accepted  # one load on each shard, side by side, to save 30 rows
    assert (
        verdict.reason
        == f"saves 30 rows on the most loaded shards, moves cost {move_cost_rows:.0f}"
    )
    assert verdict.n_moves == 2
    assert verdict.imbalance_before == pytest.approx(100 / 60)
    assert verdict.imbalance_after == pytest.approx(70 / 60)


def test_nothing_is_done_where_nothing_moves() -> None:
    swapped_slots = one_layer(a=[1, 0], b=[2, 3])
    verdict = decide(SKEWED, swapped_slots, LOADS, redundancy=1, move_cost_rows=0.0)
    assert (verdict.accepted, verdict.reason, verdict.n_moves) == (False, "nothing to move", 0)


def test_more_load_on_a_most_loaded_shard_is_refused() -> None:
    current = {s: np.vstack([SKEWED[s], LEVEL[s]]) for s in (A, B)}
    proposed = {s: np.vstack([LEVEL[s], SKEWED[s]]) for s in (A, B)}
    loads = np.vstack([LOADS * 10, LOADS])  # layer 0 wins 300, layer 1 loses 30
    verdict = decide(current, proposed, loads, redundancy=1, move_cost_rows=0.0)
    assert not verdict.accepted
    assert verdict.reason == "the most loaded shard of layer 1 would get more"


def test_layers_that_do_not_improve_can_be_left_out() -> None:
    current = {s: np.vstack([SKEWED[s], LEVEL[s]]) for s in (A, B)}
    proposed = {s: np.vstack([LEVEL[s], SKEWED[s]]) for s in (A, B)}
    loads = np.vstack([LOADS * 10, LOADS])
    mixed = improved_layers(current, proposed, loads, redundancy=1)
    for shard_id in (A, B):
        assert mixed[shard_id].tolist() == np.vstack([LEVEL[shard_id]] * 2).tolist()
    assert decide(current, mixed, loads, redundancy=1, move_cost_rows=100.0).accepted


def test_a_repair_is_accepted_at_any_cost() -> None:
    thin = one_layer(a=[0, 1], b=[0, -1])
    whole = one_layer(a=[0, 1], b=[0, 1])
    loads = np.array([[1.0, 1.0]])
    verdict = decide(thin, whole, loads, redundancy=2, move_cost_rows=1e9)
    assert verdict.accepted
    assert verdict.reason == "repairs redundancy 2: 1 experts short before, 0 after"


def test_a_loss_of_redundancy_is_refused_at_any_gain() -> None:
    whole = one_layer(a=[0, 1], b=[0, 1], c=[2, -1])
    thin = one_layer(a=[0, 2], b=[0, 2], c=[2, -1])
    loads = np.array([[0.0, 0.0, 100.0]])
    verdict = decide(whole, thin, loads, redundancy=1, move_cost_rows=0.0)
    assert not verdict.accepted
    assert verdict.reason == "harms redundancy 1: 0 experts short before, 1 after"


def test_an_expert_whose_only_shard_died_is_a_repair() -> None:
    survivors = one_layer(a=[0, -1], b=[1, -1])
    proposed = one_layer(a=[0, 2], b=[1, -1])
    verdict = decide(survivors, proposed, np.ones((1, 3)), redundancy=1, move_cost_rows=1e9)
    assert verdict.accepted and verdict.n_moves == 1
    assert verdict.reason == "repairs redundancy 1: 1 experts short before, 0 after"


@given(seed=st.integers(0, 2**32 - 1), cost=st.floats(0.0, 50.0))
@settings(max_examples=30, deadline=None)
def test_an_accepted_rebalance_never_adds_load_to_a_layers_most_loaded_shard(
    seed: int, cost: float
) -> None:
    rng = np.random.default_rng(seed)
    rooms = [ShardRoom(ShardId(f"s{i}"), f"h{i}", 5) for i in range(4)]
    current = place(rng.exponential(size=(3, 8)), rooms, redundancy=1)
    loads = 100 * rng.exponential(size=(3, 8))
    proposed = place(loads, rooms, redundancy=1, current=current)
    mixed = improved_layers(current, proposed, loads, redundancy=1)
    for proposal in (proposed, mixed):
        verdict = decide(current, proposal, loads, redundancy=1, move_cost_rows=cost)
        before, after = (heaviest(p, loads) for p in (current, proposal))
        if verdict.accepted:
            assert (after <= before * (1 + 1e-9)).all()
            assert (before - after).sum() > 0
    assert (heaviest(mixed, loads) <= heaviest(current, loads) * (1 + 1e-9)).all()


def heaviest(
    placed: dict[ShardId, NDArray[np.int32]], loads: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[L] load of the most loaded shard, counted one expert at a time."""
    most = np.zeros(loads.shape[0])
    for layer, row in enumerate(loads):
        homes = [{int(e) for e in slots[layer] if e >= 0} for slots in placed.values()]
        copies = {e: sum(e in home for home in homes) for e in range(row.size)}
        most[layer] = max(sum(row[e] / copies[e] for e in home) for home in homes)
    return most

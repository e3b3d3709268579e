"""The walk from what shards hold to what they should hold, simulated with slow readers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.moves import Exclusion, LoadExpert, Reconciliation, ShardSlots, reconcile, settled
from router.orders import servable
from router.table import ShardId

Slots = NDArray[np.int32]
SEEDS = st.integers(0, 2**32 - 1)
N_EXPERTS = 64  # more than any world here has


def slots(*rows: Iterable[int]) -> Slots:
    return np.array([list(row) for row in rows], dtype=np.int32)


def ids(n: int) -> list[ShardId]:
    return [ShardId(f"s{i}") for i in range(n)]


@dataclass
class World:
    """Shards that load at their own pace, readers that adopt tables at theirs."""

    rng: np.random.Generator
    held: dict[ShardId, Slots]
    target: dict[ShardId, Slots]
    redundancy: int
    max_loads: int
    loading: set[LoadExpert] = field(default_factory=set)
    tables: list[frozenset[tuple[ShardId, int, int]]] = field(default_factory=list)
    history: list[tuple[int, frozenset[Exclusion]]] = field(default_factory=list)
    readers: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        self._publish(frozenset())

    def actual(self) -> dict[ShardId, ShardSlots]:
        return {
            s: ShardSlots(held, tuple(x for x in sorted(self.loading) if x.shard_id == s))
            for s, held in self.held.items()
        }

    def _publish(self, exclusions: frozenset[Exclusion]) -> None:
        names = list(self.actual())
        offered = frozenset(
            (names[s], layer, e)
            for s, layer, e in np.argwhere(
                servable(self.actual(), exclusions, n_experts=N_EXPERTS)
            ).tolist()
        )
        self.tables.append(offered)
        self.history.append((len(self.history), exclusions))

    def _check_readers(self) -> None:
        """No table in use, or still to be adopted, names a replica that is not there."""
        for shard_id, layer, expert in frozenset.union(*self.tables[min(self.readers) :]):
            if shard_id in self.held:
                assert expert in self.held[shard_id][layer]

    def step(self) -> Reconciliation:
        """Some loads end, some readers adopt, the controller reconciles and publishes."""
        for load in sorted(self.loading):
            if self.rng.random() < 0.6:
                self.loading.discard(load)
                self.held[load.shard_id][load.layer, load.slot] = load.expert
        self.readers = [
            len(self.tables) - 1 if self.rng.random() < 0.5 else version for version in self.readers
        ]
        in_use = settled(self.history, oldest_in_use=min(self.readers))
        answer = reconcile(
            self.target,
            self.actual(),
            redundancy=self.redundancy,
            excluded=self.history[-1][1],
            settled=in_use,
            max_loads_per_shard=self.max_loads,
        )
        for load in answer.loads:
            self._check_load(load, in_use)
            self.loading.add(load)
            self.held[load.shard_id][load.layer, load.slot] = -1
        for shard_id in self.held:
            assert sum(x.shard_id == shard_id for x in self.loading) <= self.max_loads
        self._publish(answer.exclusions)
        self._check_readers()
        return answer

    def _check_load(self, load: LoadExpert, in_use: frozenset[Exclusion]) -> None:
        row = self.held[load.shard_id][load.layer]
        present = int(row[load.slot])
        free = present < 0 or present in row[: load.slot]
        assert free or Exclusion(load.shard_id, load.layer, present) in in_use
        assert load.expert not in row
        clashing = [x for x in self.loading if (x.shard_id, x.layer) == (load.shard_id, load.layer)]
        assert all(x.slot != load.slot and x.expert != load.expert for x in clashing)

    def offered_somewhere(self) -> set[tuple[int, int]]:
        return {(layer, e) for _, layer, e in self.tables[-1]}

    def is_as_wanted(self) -> bool:
        return all(
            set(row[row >= 0].tolist()) <= set(self.held[s][layer].tolist())
            for s, wanted in self.target.items()
            if s in self.held
            for layer, row in enumerate(wanted)
        )

    def run(self, n_steps: int) -> None:
        """Step until done; at every step, who was offered is offered."""
        before = self.offered_somewhere()
        for _ in range(n_steps):
            answer = self.step()
            assert before <= self.offered_somewhere()
            if answer.is_done and not self.loading:
                assert self.is_as_wanted()
                return
        pytest.fail(f"not there after {n_steps} steps")


def random_holdings(
    rng: np.random.Generator, n_shards: int, n_slots: int, n_experts: int, copies: int
) -> dict[ShardId, Slots]:
    """Two layers; every expert on `copies` shards, and other experts in the slots left over."""
    held = {s: np.full((2, n_slots), -1, dtype=np.int32) for s in ids(n_shards)}
    for layer in range(2):
        free = np.full(n_shards, n_slots)
        rows: list[list[int]] = [[] for _ in range(n_shards)]
        for expert in rng.permutation(n_experts):
            ties = rng.random(n_shards)
            for shard in np.lexsort((ties, -free))[:copies]:
                rows[shard].append(int(expert))
                free[shard] -= 1
        for shard, row in zip(held.values(), rows, strict=True):
            others = np.setdiff1d(np.arange(n_experts), row)
            extra = rng.permutation(others)[: rng.integers(0, n_slots - len(row) + 1)]
            full = np.append(row, extra)
            shard[layer, rng.permutation(n_slots)[: full.size]] = full
    return held


@given(
    seed=SEEDS, n_shards=st.integers(2, 6), n_slots=st.integers(2, 4), max_loads=st.integers(1, 3)
)
@settings(max_examples=80, deadline=None)
def test_two_copies_reach_any_target_without_a_gap(
    seed: int, n_shards: int, n_slots: int, max_loads: int
) -> None:
    rng = np.random.default_rng(seed)
    n_experts = n_shards * n_slots // 2
    held, target = (random_holdings(rng, n_shards, n_slots, n_experts, 2) for _ in range(2))
    World(rng, held, target, redundancy=2, max_loads=max_loads).run(400)


@given(
    seed=SEEDS, n_shards=st.integers(2, 6), n_slots=st.integers(2, 4), max_loads=st.integers(1, 3)
)
@example(seed=1148132340, n_shards=6, n_slots=4, max_loads=1)  # lent a slot for ever
@settings(max_examples=80, deadline=None)
def test_single_copies_reach_any_target_without_a_gap_if_one_slot_is_spare(
    seed: int, n_shards: int, n_slots: int, max_loads: int
) -> None:
    rng = np.random.default_rng(seed)
    n_experts = n_shards * n_slots - 1
    held, target = (random_holdings(rng, n_shards, n_slots, n_experts, 1) for _ in range(2))
    World(rng, held, target, redundancy=1, max_loads=max_loads).run(800)


@given(seed=SEEDS, n_shards=st.integers(3, 6))
@settings(max_examples=60, deadline=None)
def test_a_death_on_the_way_hides_no_expert_that_a_living_shard_has(
    seed: int, n_shards: int
) -> None:
    rng = np.random.default_rng(seed)
    held, target = (random_holdings(rng, n_shards, 4, n_shards * 2, 2) for _ in range(2))
    world = World(rng, held, target, redundancy=2, max_loads=2)
    for _ in range(rng.integers(0, 12)):
        world.step()
    dead = ids(n_shards)[rng.integers(n_shards)]
    del world.held[dead]
    world.loading = {x for x in world.loading if x.shard_id != dead}
    intact = {
        (layer, int(e))
        for shard in world.actual().values()
        for layer, row in enumerate(shard.intact())
        for e in row[row >= 0]
    }
    for _ in range(12):
        world.step()
        assert intact <= world.offered_somewhere()


def test_a_free_slot_is_filled_at_once_and_the_targets_slot_preferred() -> None:
    (a,) = ids(1)
    answer = reconcile({a: slots([-1, 7])}, {a: ShardSlots(slots([-1, -1]))}, redundancy=1)
    assert answer.loads == (LoadExpert(a, 0, 1, 7),)
    assert not answer.exclusions and not answer.is_done


def test_an_occupied_slot_is_first_excluded_then_settled_then_overwritten() -> None:
    a, b = ids(2)
    target = {a: slots([2]), b: slots([1])}
    actual = {a: ShardSlots(slots([1])), b: ShardSlots(slots([1]))}
    gone = Exclusion(a, 0, 1)
    first = reconcile(target, actual, redundancy=1)
    assert first.loads == () and first.exclusions == {gone}
    waiting = reconcile(target, actual, redundancy=1, excluded={gone})
    assert waiting.loads == () and waiting.exclusions == {gone}
    ready = reconcile(target, actual, redundancy=1, excluded={gone}, settled={gone})
    assert ready.loads == (LoadExpert(a, 0, 0, 2),) and ready.exclusions == {gone}


def test_the_last_replica_is_never_excluded() -> None:
    a, b = ids(2)
    target = {a: slots([2]), b: slots([1])}
    actual = {a: ShardSlots(slots([1])), b: ShardSlots(slots([2]))}  # a swap without a spare slot
    answer = reconcile(target, actual, redundancy=1)
    assert answer.loads == () and answer.exclusions == frozenset()
    assert answer.blocked_layers == (0,)


def test_an_expert_at_its_redundancy_is_copied_before_it_is_dropped() -> None:
    a, b, c = ids(3)
    target = {a: slots([2]), b: slots([1]), c: slots([1])}
    actual = {a: ShardSlots(slots([1])), b: ShardSlots(slots([1])), c: ShardSlots(slots([-1]))}
    first = reconcile(target, actual, redundancy=2)
    assert first.loads == (LoadExpert(c, 0, 0, 1),) and first.exclusions == frozenset()
    actual[c] = ShardSlots(slots([1]))
    assert reconcile(target, actual, redundancy=2).exclusions == {Exclusion(a, 0, 1)}


def test_an_exclusion_ends_when_the_other_replicas_die() -> None:
    a, b = ids(2)
    target = {a: slots([2]), b: slots([1])}
    gone = Exclusion(a, 0, 1)
    alone = {a: ShardSlots(slots([1]))}
    answer = reconcile(target, alone, redundancy=1, excluded={gone}, settled={gone})
    assert answer.exclusions == frozenset() and answer.loads == ()


def test_a_shard_that_loads_as_much_as_it_may_gets_no_more_orders() -> None:
    (a,) = ids(1)
    under_way = (LoadExpert(a, 0, 0, 5), LoadExpert(a, 1, 0, 5))
    actual = {a: ShardSlots(slots([-1, -1], [-1, -1]), under_way)}
    target = {a: slots([5, 6], [5, 6])}
    answers = [reconcile(target, actual, redundancy=1, max_loads_per_shard=n).loads for n in (2, 3)]
    assert answers == [(), (LoadExpert(a, 0, 1, 6),)]


def test_a_slot_that_is_being_overwritten_offers_nothing() -> None:
    (a,) = ids(1)
    shard = ShardSlots(slots([3, 4]), (LoadExpert(a, 0, 0, 9),))
    offered = servable({a: shard}, frozenset(), n_experts=9)
    assert np.argwhere(offered).tolist() == [[0, 0, 4]]
    assert not servable({a: shard}, frozenset({Exclusion(a, 0, 4)}), n_experts=9).any()


def test_experts_in_other_slots_than_the_targets_are_left_where_they_are() -> None:
    (a,) = ids(1)
    answer = reconcile({a: slots([1, 2])}, {a: ShardSlots(slots([2, 1]))}, redundancy=1)
    assert answer == Reconciliation((), frozenset(), (), True)


def test_only_what_every_table_in_use_excludes_is_settled() -> None:
    one, two = Exclusion(ShardId("a"), 0, 1), Exclusion(ShardId("a"), 0, 2)
    history = [(4, frozenset({one})), (5, frozenset({one, two})), (6, frozenset({two}))]
    assert settled(history, oldest_in_use=6) == {two}
    assert settled(history, oldest_in_use=5) == {two}
    assert settled(history, oldest_in_use=4) == frozenset()
    assert settled(history, oldest_in_use=3) == frozenset()  # that table is not remembered
    assert settled([], oldest_in_use=0) == frozenset()

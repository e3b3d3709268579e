"""One layer's rows while they are away: events in, instructions out, under any order of faults."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, note
from hypothesis import strategies as st

from router.exchange import LayerExchange, SendRows
from router.table import ReplicaTable, ShardAddress, ShardId, build_table

EXPERTS = 6


def table(holders: Mapping[str, list[int]], version: int = 1) -> ReplicaTable:
    """One layer; shard name → experts."""
    held = [(ShardAddress(ShardId(name), "host"), {0: e}) for name, e in holders.items()]
    return build_table(version, held, n_layers=1, n_experts=EXPERTS)


def exchange(
    ids: list[list[int]], holders: dict[str, list[int]], dead: set[str] | None = None
) -> LayerExchange:
    return LayerExchange(
        np.array(ids, np.int32),
        layer=0,
        table=table(holders),
        dead=frozenset(ShardId(d) for d in dead or ()),
        numbers=itertools.count(1),
    )


TWO = {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3, 4, 5]}


def test_every_pair_is_sent_once_and_then_done() -> None:
    ex = exchange([[0, 1], [2, 3]], {"a": [0, 1, 2], "b": [3, 4, 5]})
    sends = ex.begin()
    assert sorted(p for s in sends for p in s.rows.pair_positions) == [0, 1, 2, 3]
    assert ex.waiting_for == {"a", "b"}
    for send in sends:
        assert not ex.is_done
        ex.on_answer(send.number)
    assert ex.is_done


def test_a_token_needed_twice_on_a_shard_is_sent_there_once() -> None:
    [send] = exchange([[0, 1], [2, 0]], {"a": [0, 1, 2, 3, 4, 5]}).begin()
    assert send.rows.tokens.tolist() == [0, 1]
    assert send.rows.pair_rows.tolist() == [0, 0, 1, 1]
    assert send.rows.pair_experts.tolist() == [0, 1, 2, 0]


def test_a_lost_shards_pairs_go_to_the_other_holder_under_a_new_number() -> None:
    ex = exchange([[0, 1], [2, 3]], TWO)
    first = ex.begin()
    lost = next(s for s in first if s.shard_id == "a")
    [again] = ex.on_lost(ShardId("a"))
    assert again.shard_id == "b"
    assert again.number not in {s.number for s in first}
    assert again.rows.pair_positions.tolist() == lost.rows.pair_positions.tolist()


def test_rows_that_the_only_holder_refused_go_to_it_again_later() -> None:
    ex = exchange([[0, 1]], {"a": [0, 1, 2, 3, 4, 5]})
    [send] = ex.begin()
    assert ex.on_refused(send.number, ShardId("a")) == ()
    assert ex.stranded_experts == (0, 1)
    assert ex.has_refused
    [again] = ex.retry_refused()
    assert again.shard_id == "a"
    assert again.number != send.number
    ex.on_answer(again.number)
    assert ex.is_done


def test_a_late_answer_is_not_expected_any_more() -> None:
    ex = exchange([[0, 1]], TWO)
    [old] = [s for s in ex.begin() if s.shard_id == "a"]
    ex.on_lost(ShardId("a"))
    assert ex.expects(old.number, ShardId("a")) is None


def test_an_answer_from_a_stranger_or_with_a_strange_number_is_not_expected() -> None:
    ex = exchange([[0, 1]], TWO)
    send = ex.begin()[0]
    other = ShardId("b" if send.shard_id == "a" else "a")
    assert ex.expects(send.number, other) is None
    assert ex.expects(999, send.shard_id) is None
    assert ex.expects(send.number, send.shard_id) is send


def test_an_answer_is_expected_once() -> None:
    ex = exchange([[0, 1]], TWO)
    send = ex.begin()[0]
    ex.on_answer(send.number)
    assert ex.expects(send.number, send.shard_id) is None


def test_losing_a_shard_that_owes_nothing_sends_nothing() -> None:
    ex = exchange([[0, 1]], TWO)
    for send in ex.begin():
        ex.on_answer(send.number)
    assert ex.on_lost(ShardId("a")) == ()
    assert ex.is_done


def test_dead_shards_are_left_out_from_the_start() -> None:
    assert {s.shard_id for s in exchange([[0, 1], [2, 3]], TWO, dead={"a"}).begin()} == {"b"}


def test_a_refusal_counts_as_a_loss_and_a_late_refusal_as_nothing() -> None:
    ex = exchange([[0, 1]], TWO)
    send = next(s for s in ex.begin() if s.shard_id == "a")
    [again] = ex.on_refused(send.number, ShardId("a"))
    assert again.shard_id == "b"
    assert ex.on_refused(send.number, ShardId("a")) == ()


def test_an_expert_that_nobody_holds_waits_for_a_table_that_has_it() -> None:
    ex = exchange([[0, 5]], {"a": [0, 1, 2], "b": [3, 4, 5]})
    for send in ex.begin():
        if send.shard_id == "a":
            ex.on_answer(send.number)
    assert ex.on_lost(ShardId("b")) == ()
    assert ex.stranded_experts == (5,)
    assert not ex.is_done
    [send] = ex.on_table(table({"a": [0, 1, 2], "c": [5]}, version=2), dead=frozenset())
    assert (send.shard_id, send.rows.pair_positions.tolist()) == ("c", [1])
    ex.on_answer(send.number)
    assert ex.is_done


def test_a_new_table_leaves_what_is_away_where_it_is() -> None:
    ex = exchange([[0, 3]], {"a": [0, 1, 2], "b": [3, 4, 5]})
    sends = {s.shard_id: s for s in ex.begin()}
    assert ex.on_table(table({"b": [3, 4, 5], "a": [0, 1, 2]}, version=2), dead=frozenset()) == ()
    for shard_id, send in sends.items():
        assert ex.expects(send.number, shard_id) is send


def test_no_tokens_is_done_at_once() -> None:
    ex = exchange([], TWO)
    ex = LayerExchange(
        np.empty((0, 2), np.int32),
        layer=0,
        table=table(TWO),
        dead=frozenset(),
        numbers=itertools.count(1),
    )
    assert ex.begin() == ()
    assert ex.is_done


@dataclass
class Network:
    """What is under way in a randomised run."""

    in_flight: list[SendRows] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)  # positions, as often as accepted


@given(data=st.data())
def test_every_pair_is_accepted_exactly_once_whatever_dies(data: st.DataObject) -> None:
    n_shards = data.draw(st.integers(1, 4), label="shards")
    names = [ShardId(f"s{i}") for i in range(n_shards)]
    layout = {
        str(n): data.draw(st.lists(st.integers(0, EXPERTS - 1), unique=True), label=n)
        for n in names
    }
    ids = data.draw(
        st.lists(st.lists(st.integers(0, EXPERTS - 1), min_size=2, max_size=2), max_size=6),
        label="ids",
    )
    choices = np.array(ids, np.int32).reshape(-1, 2)
    ex = LayerExchange(
        choices, layer=0, table=table(layout), dead=frozenset(), numbers=itertools.count(1)
    )
    net = Network(list(ex.begin()))
    dead: set[ShardId] = set()
    version = 1
    for _ in range(40):
        event = data.draw(st.sampled_from(["answer", "die", "refuse", "table"]), label="event")
        if event == "answer" and net.in_flight:
            # answers come in any order, and those of dead shards may still arrive
            send = net.in_flight.pop(data.draw(st.integers(0, len(net.in_flight) - 1)))
            if ex.expects(send.number, send.shard_id) is send:
                ex.on_answer(send.number)
                net.answered += send.rows.pair_positions.tolist()
        elif event == "die":
            victim = data.draw(st.sampled_from(names))
            dead.add(victim)
            net.in_flight += ex.on_lost(victim)
        elif event == "refuse" and net.in_flight:
            send = data.draw(st.sampled_from(net.in_flight))
            net.in_flight += ex.on_refused(send.number, send.shard_id)
        elif event == "table":
            version += 1
            dead = set()
            net.in_flight += ex.on_table(table(layout, version), dead=frozenset())
    # at last a shard comes that has everything
    rescue = table(layout | {"rescue": list(range(EXPERTS))}, version + 1)
    net.in_flight += ex.on_table(rescue, dead=frozenset(dead))
    while not ex.is_done:
        waiting = [s for s in net.in_flight if ex.expects(s.number, s.shard_id) is s]
        note(f"waiting={len(waiting)} stranded={ex.stranded_experts}")
        assert waiting, "rows are owed and nobody has them"
        for send in waiting:
            ex.on_answer(send.number)
            net.answered += send.rows.pair_positions.tolist()
    assert sorted(net.answered) == list(range(choices.size))

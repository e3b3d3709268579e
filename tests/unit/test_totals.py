"""Totals over processes that come and go: nothing counted twice, nothing that steps back."""

import numpy as np
import pytest

from monitoring.totals import KEEP_S, Account, Key, Ledger, number

TOKENS: Key = ("expertmesh_output_tokens_total",)
SHARD_ROWS: Key = ("expertmesh_shard_rows_total",)
RUNNING: Key = ("expertmesh_engine_running_requests",)


def replica(source: str, age_s: float, tokens: float, running: float = 0) -> Account:
    states = {RUNNING: number(running)}
    return Account("replica", source, age_s, {TOKENS: number(tokens)}, states)


def shard(source: str, age_s: float, rows: float) -> Account:
    return Account("shard", source, age_s, {SHARD_ROWS: number(rows)})


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(started_s=1000.0)


def test_totals_of_several_processes_add_up(ledger: Ledger) -> None:
    ledger.add(replica("a", 1, 10), 1001)
    ledger.add(replica("b", 1, 5), 1001)
    ledger.add(replica("a", 2, 12), 1002)
    assert ledger.totals[TOKENS] == 17


def test_a_report_that_comes_twice_counts_once(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.add(replica("a", 1, 10), 1001)
    assert ledger.totals[TOKENS] == 10


def test_a_death_takes_nothing_away(ledger: Ledger) -> None:
    ledger.add(replica("a", 1, 10), 1001)
    ledger.leave(before_s=1500)
    ledger.add(replica("b", 1, 3), 1600)
    assert ledger.totals[TOKENS] == 13


def test_a_process_older_than_the_totals_counts_from_its_first_report(ledger: Ledger) -> None:
    grown = ledger.add(replica("old", 500, 10_000), 1001)
    assert grown[TOKENS] == 0
    ledger.add(replica("old", 501, 10_007), 1002)
    assert ledger.totals[TOKENS] == 7


def test_a_total_that_an_old_process_names_later_counts_from_then(ledger: Ledger) -> None:
    ledger.add(Account("replica", "old", 500), 1001)
    ledger.add(replica("old", 501, 10_000), 1002)
    ledger.add(replica("old", 502, 10_001), 1003)
    assert ledger.totals[TOKENS] == 1


def test_who_was_silent_and_comes_back_is_not_counted_again(ledger: Ledger) -> None:
    ledger.add(replica("a", 1, 10), 1001)
    ledger.leave(before_s=1500)
    ledger.add(replica("a", 700, 11), 1700)
    assert ledger.totals[TOKENS] == 11


def test_nor_if_it_was_forgotten_meanwhile(ledger: Ledger) -> None:
    ledger.add(replica("a", 1, 10), 1001)
    ledger.leave(before_s=1002)
    now_s = 1002 + 2 * KEEP_S
    ledger.leave(before_s=now_s)
    ledger.add(replica("a", now_s - 1000, 11), now_s)
    ledger.add(replica("a", now_s - 999, 12), now_s + 1)
    assert ledger.totals[TOKENS] == 11


def test_the_increase_is_returned(ledger: Ledger) -> None:
    ledger.add(replica("a", 1, 10), 1001)
    assert ledger.add(replica("a", 2, 25), 1002)[TOKENS] == 15


def test_a_successor_takes_the_place_and_its_total_goes_on(ledger: Ledger) -> None:
    ledger.add(shard("a", 1, 100), 1001)
    ledger.add(shard("b", 1, 50), 1001)
    ledger.add(shard("b", 9, 60), 1009)
    ledger.leave(before_s=1005)
    ledger.add(shard("c", 1, 7), 1010)
    assert ledger.place("shard", "a") is None
    assert ledger.place("shard", "c") == "0"
    assert ledger.totals[*SHARD_ROWS, "0"] == 107
    assert ledger.totals[*SHARD_ROWS, "1"] == 60


def test_a_successor_need_not_wait_for_the_end_of_the_lease(ledger: Ledger) -> None:
    ledger.add(shard("a", 1, 100), 1001)
    ledger.add(shard("b", 2, 50), 1004)
    ledger.add(shard("c", 1, 7), 1005)
    assert [ledger.place("shard", s) for s in "abc"] == [None, "0", "1"]


def test_one_that_comes_back_gets_a_free_place(ledger: Ledger) -> None:
    ledger.add(shard("a", 1, 100), 1001)
    ledger.leave(before_s=1005)
    ledger.add(shard("b", 1, 50), 1006)
    ledger.add(shard("a", 7, 101), 1007)
    assert ledger.place("shard", "a") == "1"
    assert ledger.totals[*SHARD_ROWS, "1"] == 1


def test_states_are_of_the_living_by_place(ledger: Ledger) -> None:
    ledger.add(replica("a", 1, 0, running=3), 1001)
    ledger.add(replica("b", 1, 0, running=4), 1002)
    assert ledger.states() == {(*RUNNING, "0"): 3, (*RUNNING, "1"): 4}
    ledger.leave(before_s=1002)
    assert ledger.states() == {(*RUNNING, "1"): 4}


def test_only_processes_younger_than_the_totals_count_as_started(ledger: Ledger) -> None:
    started: Key = ("expertmesh_process_starts_total", "shard")
    ledger.add(shard("old", 500, 1), 1001)
    assert started not in ledger.totals
    ledger.add(shard("new", 1, 1), 1010)
    ledger.add(shard("new", 2, 1), 1011)
    assert ledger.totals[started] == 1


def test_arrays_add_up_cell_by_cell_and_never_step_back(ledger: Ledger) -> None:
    rows: Key = ("expertmesh_expert_rows_total",)
    rng = np.random.default_rng(0)
    true, told = np.zeros((2, 3)), np.zeros((2, 3))
    for step in range(20):
        name, now_s = f"incarnation {step // 5}", 1001.0 + step
        told = told * (step % 5 > 0) + rng.integers(0, 9, (2, 3))
        account = Account("replica", name, step % 5 + 0.5, {rows: told.copy()})
        true += ledger.add(account, now_s)[rows]
        before = ledger.totals[rows].copy()
        assert (ledger.totals[rows] == true).all()
        ledger.leave(before_s=now_s)
        assert (ledger.totals[rows] >= before).all()

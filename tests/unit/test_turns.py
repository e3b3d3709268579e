"""Two halves of a step take turns, and neither waits for one that has ended or failed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from services.attention.turns import OtherHalfFailed, Turns, cut_at


@pytest.fixture
def turns() -> Turns:
    return Turns()


def passing(turns: Turns, name: str, seen: list[str], times: int) -> Callable[[], str]:
    def half() -> str:
        for number in range(times):
            seen.append(f"{name}{number}")
            turns.pass_on()
        return name

    return half


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        (2, 2, "a0 b0 a1 b1"),
        (3, 1, "a0 b0 a1 a2"),
        (1, 3, "a0 b0 b1 b2"),
        (0, 2, "b0 b1"),
        (2, 0, "a0 a1"),
    ],
)
def test_halves_run_in_turn(turns: Turns, first: int, second: int, order: str) -> None:
    for _ in range(3):
        seen: list[str] = []
        halves = passing(turns, "a", seen, first), passing(turns, "b", seen, second)
        assert turns.run(*halves) == ("a", "b")
        assert seen == order.split()
        assert not turns.is_split


def test_each_half_has_a_thread_and_second_ones_share_it(turns: Turns) -> None:
    def who() -> threading.Thread:
        turns.pass_on()
        return threading.current_thread()

    (first, second), again = turns.run(who, who), turns.run(who, who)
    assert (first, second) == again
    assert first is threading.current_thread() is not second


def test_the_step_begins_with_the_first_and_ends_with_the_second(turns: Turns) -> None:
    def asked() -> tuple[bool, bool, bool]:
        turns.pass_on()
        return turns.begins, turns.ends, turns.is_split

    assert turns.run(asked, asked) == ((True, False, True), (False, True, True))
    assert (turns.begins, turns.ends, turns.is_split) == (True, True, False)
    assert turns.pass_on() == 0, "a whole step has nobody to wait for"


def test_what_passes_while_the_other_runs_is_told(turns: Turns) -> None:
    def slow() -> float:
        threading.Event().wait(0.05)
        return 0.0

    away_s, _ = turns.run(turns.pass_on, slow)
    assert away_s >= 0.05


@pytest.mark.parametrize("failing", ["first", "second"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_half_that_fails_ends_the_other_one(turns: Turns, failing: str, after: int) -> None:
    ended: list[str] = []

    def fails() -> None:
        for _ in range(after):
            turns.pass_on()
        raise ValueError("no expert")

    def goes_on() -> None:
        try:
            for _ in range(9):
                turns.pass_on()
        except OtherHalfFailed:
            ended.append("early")
            raise

    halves = (fails, goes_on) if failing == "first" else (goes_on, fails)
    with pytest.raises(ValueError, match="no expert"):
        turns.run(*halves)
    assert ended == ["early"] or (failing, after) == ("first", 0), "that one never began"
    assert turns.run(lambda: 1, lambda: 2) == (1, 2), "the next step runs"


def test_what_both_would_change_is_kept_for_each(turns: Turns) -> None:
    shared = ["nobody"]

    @contextmanager
    def keeping() -> Iterator[None]:
        before = shared[0]
        try:
            yield
        finally:
            shared[0] = before

    def half(name: str) -> list[str]:
        shared[0] = name
        found = []
        for _ in range(3):
            turns.pass_on()
            found.append(shared[0])
        return found

    seen = turns.run(lambda: half("a"), lambda: half("b"), keeping=keeping)
    assert seen == (["a"] * 3, ["b"] * 3)
    assert shared == ["nobody"]


@pytest.mark.parametrize(
    ("starts", "cut"),
    [
        ([0, 64, 128], 1),
        ([0, 64, 128, 192], 1),
        ([0, 1, 2, 3, 300, 600], 4),
        ([0, 1, 2, 258], None),  # one prompt and two decodes: the smaller half has two tokens
        ([0, 700, 800], None),
        ([0, 500], None),
        ([0, 75, 300], 1),
        ([0, 74, 300], None),
    ],
)
def test_a_step_is_cut_between_requests_near_its_middle(starts: list[int], cut: int | None) -> None:
    assert cut_at(starts) == cut

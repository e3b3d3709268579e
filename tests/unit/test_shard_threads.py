"""A shard learns for each size of a batch whether all threads are worth it."""

from collections.abc import Callable

import pytest

from services.experts.threads import EVERY, SETTLE, TRIAL, WORTH, ThreadChoice

LEARNT = SETTLE + TRIAL  # batches until the first decision
Seconds = Callable[[int, int], float]


def computed(choice: ThreadChoice, batches: int, n_pairs: int, seconds: Seconds) -> list[int]:
    """Threads of each of so many batches; seconds(threads, n_pairs): how long one takes."""
    used = []
    for _ in range(batches):
        used.append(choice.threads_for(n_pairs, most=4))
        choice.took(n_pairs, seconds(used[-1], n_pairs), most=4)
    return used


def bound_by_memory(threads: int, n_pairs: int) -> float:
    """Threads beyond the first only have to be woken."""
    return n_pairs * 1e-4 + (threads - 1) * 1e-5


def bound_by_arithmetic(threads: int, n_pairs: int) -> float:
    return n_pairs * 1e-4 / threads


@pytest.mark.parametrize(("seconds", "best"), [(bound_by_memory, 1), (bound_by_arithmetic, 4)])
def test_what_is_quicker_is_used_after_one_trial(seconds: Seconds, best: int) -> None:
    choice = ThreadChoice()
    assert computed(choice, SETTLE, 32, seconds) == [4] * SETTLE
    assert computed(choice, TRIAL, 32, seconds) == [1] * TRIAL
    assert computed(choice, EVERY, 32, seconds) == [best] * EVERY


@pytest.mark.parametrize(("share", "best"), [(WORTH + 0.01, 1), (WORTH - 0.01, 4)])
def test_all_threads_must_gain_something(share: float, best: int) -> None:
    choice = ThreadChoice()
    computed(choice, LEARNT, 8, lambda threads, _: share if threads > 1 else 1.0)
    assert choice.threads_for(8, most=4) == best


def test_a_machine_that_changed_is_noticed() -> None:
    choice = ThreadChoice()
    computed(choice, LEARNT, 32, bound_by_memory)
    assert computed(choice, EVERY, 32, bound_by_arithmetic) == [1] * EVERY
    assert computed(choice, TRIAL, 32, bound_by_arithmetic) == [4] * TRIAL
    assert computed(choice, EVERY, 32, bound_by_arithmetic) == [4] * EVERY


def test_one_batch_that_was_interrupted_decides_nothing() -> None:
    choice = ThreadChoice()
    computed(choice, LEARNT - 1, 32, bound_by_memory)
    choice.took(32, 10.0, most=4)
    assert choice.threads_for(32, most=4) == 1


def test_sizes_and_numbers_of_threads_are_learnt_apart() -> None:
    choice = ThreadChoice()
    computed(choice, LEARNT, 32, bound_by_memory)
    assert choice.threads_for(63, most=4) == 1  # as large, between two powers of two
    assert choice.threads_for(64, most=4) == 4
    assert choice.threads_for(32, most=3) == 3  # a sender keeps one busy


@pytest.mark.parametrize("most", [1, 0, -1])  # a sender keeps all of them busy
def test_with_one_thread_there_is_no_choice(most: int) -> None:
    choice = ThreadChoice()
    for _ in range(LEARNT):
        assert choice.threads_for(32, most=most) == 1
        choice.took(32, 1.0, most=most)

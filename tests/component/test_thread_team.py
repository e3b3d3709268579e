"""Threads that sleep while others compute: torch's and vLLM's, with a core each where they fit."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from vllm.platforms import current_platform

from services.thread_team import ThreadTeam, a_core_each, openmp

THREADS = 2
T = TypeVar("T")
pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < THREADS, reason="this machine has one core"
)


def in_a_thread(what: Callable[[], T]) -> T:
    """With OpenMP threads and cores of its own; what this process has besides stays as it is."""
    got: list[T] = []
    thread = threading.Thread(target=lambda: got.append(what()))
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "threads that sleep did not come back"
    return got[0]


def tasks() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def used_s(of: set[int]) -> float:
    times = [Path(f"/proc/self/task/{task}/schedstat").read_text().split()[0] for task in of]
    return sum(map(int, times)) * 1e-9


def test_torch_brings_the_library() -> None:
    assert openmp() is not None


def measured() -> list[float]:
    before, used = tasks(), []
    team, numbers = ThreadTeam(), torch.ones(1 << 20)
    team.use(THREADS)
    numbers.mul_(1.0)
    helpers = tasks() - before
    for sleeps in (False, True):
        used_then_s = 0.0
        for _ in range(20):
            numbers.mul_(1.0)
            if sleeps:
                team.sleep()
            time.sleep(0.002)
            began_s = used_s(helpers)
            time.sleep(0.005)
            used_then_s += used_s(helpers) - began_s
            team.back()
        used.append(used_then_s)
    return used


def test_sleeping_threads_use_no_processor() -> None:
    fresh = multiprocessing.get_context("spawn")  # with more threads than cores they hardly spin
    with ProcessPoolExecutor(1, mp_context=fresh) as process:
        spinning_s, asleep_s = process.submit(measured).result(timeout=60)
    assert asleep_s < 0.2 * spinning_s


def test_who_lets_them_sleep_computes_alone_and_has_them_back() -> None:
    def seen() -> list[int]:
        team = ThreadTeam()
        team.use(THREADS)
        counts = [torch.get_num_threads()]
        with team.asleep():
            counts.append(torch.get_num_threads())
            with team.awake():
                counts.append(torch.get_num_threads())
            counts.append(torch.get_num_threads())
            assert torch.ones(1 << 20).sum() == 1 << 20
        counts.append(torch.get_num_threads())
        with pytest.raises(ZeroDivisionError), team.asleep():
            raise ZeroDivisionError
        assert torch.ones(1 << 20).sum() == 1 << 20
        return [*counts, torch.get_num_threads()]

    assert in_a_thread(seen) == [THREADS, 1, THREADS, 1, THREADS, THREADS]


def test_fewer_and_more_threads_while_they_sleep() -> None:
    def seen() -> list[int]:
        team, counts = ThreadTeam(a_core_each(len(os.sched_getaffinity(0)))), []
        for threads in (THREADS, 1, THREADS):
            with team.awake():
                team.use(threads)
                counts.append(torch.get_num_threads())
        team.back()
        return counts

    assert in_a_thread(seen) == [THREADS, 1, THREADS]


def test_two_threads_wake_their_own() -> None:
    def use_often() -> bool:
        team, numbers = ThreadTeam(), torch.ones(1 << 16)
        team.use(THREADS)
        for _ in range(200):
            with team.asleep():
                time.sleep(0.0002)
                team.wake()
            numbers.add_(1.0)
        return bool((numbers == 201.0).all())

    done: list[bool] = []
    both = [threading.Thread(target=lambda: done.append(use_often())) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=60)
    assert done == [True, True]


def test_a_team_of_all_cores_has_one_for_each() -> None:
    every = sorted(os.sched_getaffinity(0))
    assert a_core_each(len(every)) == tuple(every)
    assert a_core_each(len(every), from_last=True) == tuple(reversed(every))
    assert a_core_each(len(every) + 1) == a_core_each(1) == ()

    def bound() -> list[set[int]]:
        before, team = tasks(), ThreadTeam(a_core_each(len(every)))
        torch.ones(1 << 20).sum()  # with threads that may run anywhere, which end
        team.use(len(every))
        torch.ones(1 << 20).sum()
        return [os.sched_getaffinity(0)] + [
            os.sched_getaffinity(task) for task in sorted(tasks() - before)
        ]

    assert in_a_thread(bound) == [{core} for core in every]


@pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM computes on another device")
def test_kernels_of_vllm_compute_with_the_same_threads() -> None:
    current_platform.import_kernels()

    def seen() -> tuple[set[int], float]:
        before, team = tasks(), ThreadTeam()
        team.use(THREADS)
        torch.ones(1 << 20).sum()
        started, rows = tasks(), torch.ones(512, 8192)
        began_s = used_s(started - before)
        for _ in range(20):
            torch.ops._C.silu_and_mul(torch.empty(512, 4096), rows)
            with team.asleep():
                time.sleep(0.001)
        return tasks() - started, used_s(started - before) - began_s

    others, computed_s = in_a_thread(seen)
    assert not others, "vLLM's kernels started threads of their own: is its OpenMP torch's?"
    assert computed_s > 0

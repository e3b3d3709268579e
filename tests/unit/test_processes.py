"""Which processes are ours, and that no other is ended in their place."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.processes import (
    ProcessId,
    descendants,
    end_processes,
    identify,
    is_alive,
    kill_processes,
    send,
    this_process,
    wait_gone,
)

GENTLE = "print('up', flush=True); input()"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); {GENTLE}"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GENTLE!r}])"


@contextmanager
def running(program: str) -> Iterator[ProcessId]:
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        process = identify(child.pid)
        assert process is not None
        try:
            yield process
        finally:
            child.kill()


def test_process_is_known_by_its_start_too() -> None:
    me = this_process()
    assert is_alive(me)
    assert not is_alive(ProcessId(me.pid, me.start_ticks - 1))


def test_process_that_has_only_its_exit_code_left_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identify(child.pid) is None
    child.wait()
    assert identify(child.pid) is None


def test_stranger_with_the_same_id_gets_no_signal() -> None:
    me = this_process()
    send(ProcessId(me.pid, me.start_ticks - 1), signal.SIGKILL)
    kill_processes([ProcessId(me.pid, me.start_ticks - 1)])
    assert is_alive(me)


@pytest.mark.parametrize("program", [GENTLE, STUBBORN])
def test_left_over_process_is_ended(program: str) -> None:
    with running(program) as process:
        assert end_processes([process], wait_s=0.2) == 1
        assert not is_alive(process)
        assert end_processes([process]) == 0


def test_descendants_of_descendants_are_found() -> None:
    with running(PARENT) as parent:
        [child] = descendants(parent)
        assert {parent, child} <= set(descendants())
        kill_processes([child])
        assert descendants(ProcessId(parent.pid, parent.start_ticks - 1)) == ()


def test_wait_gone_tells_who_is_left_when_the_time_is_over() -> None:
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    me = this_process()
    assert wait_gone([me], 3.0, clock=lambda: now_s, sleep=sleep) == (me,)
    assert now_s == pytest.approx(3.0, abs=0.1)
    assert wait_gone([ProcessId(me.pid, 1)], 3.0, clock=lambda: now_s, sleep=sleep) == ()

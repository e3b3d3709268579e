"""Processes of this machine: which ones belong to us, are they alive, end them.

A process is named by its id and the moment it started, because ids are used again. Linux only, as
are Ray's local clusters with vLLM.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

TERMINATE_WAIT_S = 5.0
KILL_WAIT_S = 5.0
POLL_S = 0.05
PR_SET_CHILD_SUBREAPER = 36
STATE, START_TICKS = 0, 19  # fields of /proc/PID/stat after the program's name


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, now and for ever."""

    pid: int
    start_ticks: int  # clock ticks from the machine's boot to the start of the process


def identify(pid: int) -> ProcessId | None:
    """The process that has this id now; None if there is none, or only its exit code is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[STATE] in "ZX" else ProcessId(pid, int(fields[START_TICKS]))


def this_process() -> ProcessId:
    """The one that asks."""
    found = identify(os.getpid())
    assert found is not None
    return found


def is_alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that `descendants` has it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(of: ProcessId | None = None) -> tuple[ProcessId, ...]:
    """The processes that `of` (None: this one) started, and those that they started."""
    if of is not None and not is_alive(of):
        return ()
    try:
        children = psutil.Process(of.pid if of else None).children(recursive=True)
    except psutil.NoSuchProcess:
        return ()
    return tuple(process for child in children if (process := identify(child.pid)) is not None)


def send(process: ProcessId, signum: signal.Signals) -> None:
    """Send a signal to this process and no other; nothing if it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if is_alive(process):  # the handle keeps meaning this one, whatever happens to the id
            signal.pidfd_send_signal(handle, signum)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def wait_gone(
    processes: Iterable[ProcessId],
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[ProcessId, ...]:
    """Wait until none of them is alive; returns those that still are at the end of the time."""
    end_s = clock() + timeout_s
    while (left := tuple(process for process in processes if is_alive(process))) and (
        clock() < end_s
    ):
        sleep(POLL_S)
    return left


def end_processes(processes: Iterable[ProcessId], wait_s: float = TERMINATE_WAIT_S) -> int:
    """End those that still run, after `wait_s` by force; returns how many there were."""
    running = [process for process in processes if is_alive(process)]
    for process in running:
        send(process, signal.SIGTERM)
    kill_processes(wait_gone(running, wait_s))
    return len(running)


def kill_processes(processes: Iterable[ProcessId]) -> None:
    """End them at once."""
    processes = tuple(processes)
    for process in processes:
        send(process, signal.SIGKILL)
    wait_gone(processes, KILL_WAIT_S)

"""What a server with all of its processes takes: memory and processor time.

Pages that several processes share count once, and what Ray starts belongs to the server as well.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from deploy.processes import ProcessId, descendants

CpuSeconds = Mapping[ProcessId, float]


@dataclass(frozen=True, slots=True)
class CpuLook:
    """Processor seconds since each began, at one moment."""

    at_s: float  # monotonic clock
    server: CpuSeconds
    client_s: float  # this process
    machine_s: float  # all that runs here, the above included


@dataclass(frozen=True, slots=True)
class CpuUse:
    """From one look to the next."""

    server_s: float
    elsewhere_cores: float  # kept busy, on average, by neither the server nor this process


def tree(root: ProcessId) -> tuple[ProcessId, ...]:
    """The server's first process and all that came of it."""
    return (root, *descendants(root))


def resident_bytes(*roots: ProcessId) -> int:
    """Proportional set sizes, summed: a page that n processes share is an n-th of each."""
    total = 0
    for process in (each for root in roots for each in tree(root)):
        try:
            total += psutil.Process(process.pid).memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def look_at_cpu(*roots: ProcessId) -> CpuLook:
    """Now."""
    machine, client = psutil.cpu_times(), psutil.Process().cpu_times()
    return CpuLook(
        at_s=time.monotonic(),
        server={each: used for root in roots for each, used in _cpu_seconds(root).items()},
        client_s=client.user + client.system,
        machine_s=machine.user + machine.nice + machine.system + machine.irq + machine.softirq,
    )


def cpu_between(before: CpuLook, after: CpuLook) -> CpuUse:
    """What was used by those processes of the server that lived to see the second look."""
    server_s = sum(used - before.server.get(each, 0.0) for each, used in after.server.items())
    ours_s = server_s + after.client_s - before.client_s
    elsewhere_s = after.machine_s - before.machine_s - ours_s
    return CpuUse(server_s, max(0.0, elsewhere_s / (after.at_s - before.at_s)))


def _cpu_seconds(root: ProcessId) -> dict[ProcessId, float]:
    """In user and in system mode."""
    found: dict[ProcessId, float] = {}
    for process in tree(root):
        try:
            times = psutil.Process(process.pid).cpu_times()
        except psutil.Error:
            continue
        found[process] = times.user + times.system
    return found

"""`down`: ask the recorded `up` to stop, and see that all of it is gone.

Safe to repeat, and after a crash: what a dead `up` left is in its record.
"""

import signal
import time
from collections.abc import Callable
from typing import Protocol

from deploy.processes import (
    ProcessId,
    descendants,
    is_alive,
    kill_processes,
    send,
    wait_gone,
)
from deploy.progress import Progress
from deploy.records import RunRecord, find_records, remove_record
from router.errors import PlatformError

STOP_WAIT_S = 30.0
LOOK_S = 1.0
ROUNDS = 5  # while some are killed, others may be starting


class AppRemover(Protocol):
    """What is needed of the backend."""

    def drain(self, record: RunRecord, grace_s: float) -> int: ...

    def delete_app(self, record: RunRecord) -> None: ...


def down(
    name: str | None, backend: AppRemover, progress: Progress, *, grace_s: float = 0.0
) -> None:
    """Stop one deployment, or all of this user's; none is no error.

    grace_s: how long open requests may take to finish, while new ones get 503.
    """
    records = find_records(name)
    if not records:
        progress.say("nothing runs" if name is None else f"no deployment named {name} runs")
    for record in records:
        if is_alive(record.owner):
            text = f"stopping {record.name}, process {record.owner.pid}"
        else:
            text = f"clearing up after {record.name}, whose process {record.owner.pid} is gone"
        if grace_s > 0 and is_alive(record.owner):
            let_finish(record, backend, progress, grace_s)
        with progress.step(text):
            stop_run(record, backend, progress)


def let_finish(record: RunRecord, backend: AppRemover, progress: Progress, grace_s: float) -> None:
    """Wait for requests that are open, as long as that is possible."""
    with progress.step(f"waiting up to {grace_s:g} s for open requests"):
        try:
            if left := backend.drain(record, grace_s):
                progress.say(f"{left} requests have not finished; they are cut off")
        except PlatformError as error:
            progress.say(f"open requests cannot be waited for: {error}")


def stop_run(
    record: RunRecord,
    backend: AppRemover,
    progress: Progress,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """End one `up` and everything that it started; remove its application from a joined cluster.

    Raises PlatformError if the joined cluster cannot be asked; the record then stays.
    """
    known = set(record.processes)
    was_orderly = is_alive(record.owner)
    if was_orderly:
        send(record.owner, signal.SIGTERM)
        end_s = clock() + STOP_WAIT_S
        while is_alive(record.owner) and clock() < end_s:
            known |= set(descendants(record.owner))
            wait_gone([record.owner], LOOK_S)
        was_orderly = not is_alive(record.owner)
    if killed := kill_run(record.owner, known):
        progress.say(f"killed {killed} processes that had not stopped by themselves")
    if record.is_joined and not was_orderly:
        backend.delete_app(record)
    remove_record(record)


def kill_run(owner: ProcessId, known: set[ProcessId]) -> int:
    """Kill the owner and what is known of its descendants; returns how many there were."""
    killed = 0
    for _ in range(ROUNDS):
        families = [p for process in {owner, *known} for p in (process, *descendants(process))]
        alive = {process for process in families if is_alive(process)}
        if not alive:
            break
        killed += len(alive)
        kill_processes(alive)
    return killed

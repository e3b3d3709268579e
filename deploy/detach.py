"""`up --detach`: the same `up` in the background, watched until it serves or fails.

A local Ray lives as long as the process that started it, so that process has to stay; what goes
into the background is the whole command. It prints into a log, which is shown here as it grows.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from deploy.processes import descendants, identify, kill_processes
from deploy.records import UP_LOG, read_record, refuse_if_running, run_folder
from deploy.signals import Stopped, raise_on_stop_signals, stop_signals_ignored
from services.config import DeploymentConfig

OPTION = "--detach"
POLL_S = 0.2
STOP_WAIT_S = 40.0  # `up` itself gives up on an orderly end before that


class Child(Protocol):
    """What is needed of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...


@dataclass(slots=True)
class LogView:
    """Shows what is added to a file: errors to `err`, everything else to `out`."""

    file: Path
    out: TextIO
    err: TextIO
    _shown: int = 0
    _is_error: bool = False

    def show(self) -> None:
        """Print the lines that have come since the last call."""
        with open(self.file, "rb") as file:
            file.seek(self._shown)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                self._shown += len(line)
                text = line.decode(errors="replace")
                self._is_error |= text.startswith("error:")
                (self.err if self._is_error else self.out).write(text)
        self.out.flush()
        self.err.flush()


def up_detached(argv: Sequence[str], config: DeploymentConfig, out: TextIO, err: TextIO) -> int:
    """Run `up` with the words of `argv` in the background; return when it serves or has failed.

    Returns 0, or its exit code. Ctrl-C stops it as well, and is passed on.
    """
    raise_on_stop_signals()
    refuse_if_running(config.name)
    folder = run_folder(config.name)
    child, view = start_in_background(argv, folder / UP_LOG), LogView(folder / UP_LOG, out, err)
    try:
        code = watch(child, view, config.name)
    except Stopped:
        with stop_signals_ignored():
            stop_background(child, view)
        raise
    if code is None:
        out.write(
            f"left running as process {child.pid}; what it says: {view.file}\n"
            f"stop it with: python -m deploy down --name {config.name}\n"
        )
        return 0
    return code if code >= 0 else 128 - code


def start_in_background(argv: Sequence[str], log: Path) -> Child:
    """Start it in a session of its own, so that a closed terminal is nothing to it."""
    words = [word for word in argv if word != OPTION]
    log.unlink(missing_ok=True)
    log.touch(mode=0o600)
    with open(log, "ab") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "deploy", *words],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def watch(
    child: Child, view: LogView, name: str, sleep: Callable[[float], None] = time.sleep
) -> int | None:
    """Show what it says until it is ready (None) or ended (its exit code)."""
    while True:
        code = child.poll()
        record = read_record(run_folder(name))
        is_ready = record is not None and record.owner.pid == child.pid and record.is_ready
        view.show()  # last: what it said before it ended or was ready is to be seen
        if code is not None or is_ready:
            return code
        sleep(POLL_S)


def stop_background(
    child: Child,
    view: LogView,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Ask it to stop, show how it does, and end it with all it started if it takes too long."""
    owner = identify(child.pid)
    child.terminate()
    end_s = clock() + STOP_WAIT_S
    while child.poll() is None and clock() < end_s:
        view.show()
        sleep(POLL_S)
    view.show()
    if owner is not None and child.poll() is None:
        kill_processes([*descendants(owner), owner])

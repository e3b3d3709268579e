"""A doomed shard's process as the pool sees it: started, armed, continued, ended.

The process itself is `doomed_shard`, forked from a server that has vLLM loaded already.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from router.table import ShardAddress
from tests.support.kill_scenarios import Strike

PATIENCE_S = 60.0  # for a note that must come, and for a killed process to be gone
START_TIMEOUT_S = 180.0


def start_nursery() -> None:
    """Begin to import what every shard needs; returns at once."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["tests.support.shard_nursery"]
    )
    forkserver.ensure_running()


def _run_shard(*arguments: Any) -> None:
    from tests.support.doomed_shard import run_shard  # vLLM: in the shard's process only

    run_shard(*arguments)


class ShardProcess:
    """One incarnation of one shard."""

    def __init__(
        self, name: str, held: dict[int, list[int]], *, model: Path, run_dir: Path
    ) -> None:
        """held: layer → experts."""
        context = multiprocessing.get_context("forkserver")
        self.name, self.held = name, held
        self.address: ShardAddress | None = None
        self.struck_step: int | None = None
        self.was_stopped = False
        self.answered_late = False
        self.pipe, theirs = context.Pipe()
        self._armed = self._hung_up = False
        self._process = context.Process(
            target=_run_shard, args=(theirs, name, held, str(model), run_dir), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def speaks(self) -> bool:
        """Whether its end of the pipe is open."""
        return not self._hung_up

    def hear(self, step: int) -> None:
        """Take in what it has said; a strike belongs to the engine's step `step`."""
        while not self._hung_up and self.pipe.poll():
            try:
                note = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._hung_up = True
                return
            if isinstance(note, ShardAddress):
                self.address = note
            self._armed |= note == "armed"
            self.answered_late |= note == "answered late"
            if note == "struck":
                self.struck_step = step

    def _hear_until(self, is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            if self._hung_up or time.monotonic() > deadline_s:
                raise TimeoutError(f"shard {self.name} has not {what}, exitcode={self.exitcode()}")
            self.pipe.poll(0.1)
            self.hear(-1)

    def wait_ready(self) -> ShardAddress:
        """Its address, when it holds its experts."""
        self._hear_until(lambda: self.address is not None, "started", START_TIMEOUT_S)
        assert self.address is not None
        return self.address

    def arm(self, strike: Strike) -> None:
        """It will strike itself; requests count from now."""
        self.pipe.send(strike)
        self._hear_until(lambda: self._armed, "armed itself", PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL from outside; returns when the process is gone."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(PATIENCE_S)

    def resume(self) -> None:
        """SIGCONT to a stopped process; returns when it has sent the answer that it owed."""
        assert self._process.pid is not None
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        self.was_stopped = stat.rpartition(") ")[2].startswith("T")
        os.kill(self._process.pid, signal.SIGCONT)
        self._hear_until(lambda: self.answered_late, "answered late", PATIENCE_S)

    def exitcode(self, timeout_s: float = 0.0) -> int | None:
        """How it ended, -9 for SIGKILL; None if it still lives after `timeout_s`."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def end(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        self._process.join(PATIENCE_S)
        self.pipe.close()

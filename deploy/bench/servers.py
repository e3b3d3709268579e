"""One server at a time, as a program of its own: started, waited for, and ended with all it began.

Which program that is, is told in `deploy.bench.sides`.
"""

import math
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from deploy.bench.usage import tree
from deploy.processes import ProcessId, identify, kill_processes, send, wait_gone
from deploy.signals import stop_signals_ignored
from router.errors import EngineError

START_TIMEOUT_S = 600.0
STOP_WAIT_S = 45.0  # an orderly end of `up` takes up to half a minute
POLL_S = 0.5
FIRST_REQUEST_TIMEOUT_S = 60.0
LAST_LINES = 30
REFUSALS = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)  # not worth a wait


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one server."""

    words: tuple[str, ...]
    environment: Mapping[str, str]  # all of it
    folder: Path  # to start it in
    url: str  # where it will listen, http://host:port
    model: str  # id that its clients use


class Server:
    """One that was started."""

    def __init__(self, launch: Launch, log: Path) -> None:
        """log: gets all that it prints."""
        self.launch = launch
        self.start_s = math.nan  # from its start to its first token
        self._log = log
        self._started_s = time.monotonic()
        with open(log, "wb") as sink:
            self._child = subprocess.Popen(
                launch.words,
                cwd=launch.folder,
                env=dict(launch.environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the one who measures, who passes it on
            )
        self._process = identify(self._child.pid)

    @property
    def process(self) -> ProcessId:
        """The first of its processes. Raises EngineError if it has ended."""
        if self._process is None or self._child.poll() is not None:
            raise EngineError(f"the server has ended:\n{last_lines(self._log)}")
        return self._process

    def wait_until_ready(self) -> None:
        """Return when a first token was served.

        Raises EngineError with its last words if it ends, or serves nothing in time.
        """
        body = {"model": self.launch.model, "prompt": "a", "max_tokens": 1}
        end_s, seen = self._started_s + START_TIMEOUT_S, "nothing"
        with httpx.Client(timeout=FIRST_REQUEST_TIMEOUT_S, trust_env=False) as client:
            while time.monotonic() < end_s and self.process:
                try:
                    answer = client.post(f"{self.launch.url}/v1/completions", json=body)
                except httpx.TransportError as error:
                    seen = repr(error)
                else:
                    if answer.status_code == httpx.codes.OK:
                        self.start_s = time.monotonic() - self._started_s
                        return
                    seen = f"status {answer.status_code}: {answer.text[:500]}"
                    if answer.status_code in REFUSALS:
                        break
                time.sleep(POLL_S)
        raise EngineError(
            f"no token from {self.launch.url} after {time.monotonic() - self._started_s:.0f} s; "
            f"last: {seen}\n"
            f"{last_lines(self._log)}"
        )

    def end(self) -> None:
        """In good order if it goes in time, by force what is left."""
        if self._process is not None and self._child.poll() is None:
            began = tree(self._process)
            send(self._process, signal.SIGINT)
            wait_gone([self._process], STOP_WAIT_S)
            kill_processes(dict.fromkeys([*began, *tree(self._process)]))
        self._child.wait()


@contextmanager
def running(launch: Launch, log: Path) -> Iterator[Server]:
    """Start it, and end it with every process that it started."""
    server = Server(launch, log)
    try:
        yield server
    finally:
        with stop_signals_ignored():
            server.end()


def last_lines(log: Path) -> str:
    """The end of what a server printed."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])

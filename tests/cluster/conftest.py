"""Real applications, started as an operator would, one at a time: two cores are soon busy."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.free_port import free_port
from tests.support.collector import Collector

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 560.0
STOP_TIMEOUT_S = 150.0
STATUS_TIMEOUT_S = 120.0
NAME = "test-application"
MODEL = "demo-moe"

TWICE = ("pool.redundancy=2", "model.dtype=float32", "gateway.body_timeout_s=3.0")
"""Two shards, each of which has every expert; who sends slowly is soon refused."""


@dataclass(frozen=True)
class Application:
    """The running application."""

    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def deploy(self, *words: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a command of `python -m deploy` that knows it by name."""
        return subprocess.run(
            [sys.executable, "-m", "deploy", *words, "--name", NAME],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def status(self) -> dict[str, Any]:
        """What `python -m deploy status --json` says of it, which it may not know in time."""
        end_s = time.monotonic() + STATUS_TIMEOUT_S
        while True:
            done = self.deploy("status", "--json")
            assert done.stdout, done.stderr
            [run] = json.loads(done.stdout)["runs"]
            if not run["problem"] or time.monotonic() > end_s:
                return dict(run)

    def bench_faults(self, out: Path, *words: str) -> dict[str, dict[str, Any]]:
        """Scenario → result of `python -m deploy bench faults`, which prints its table."""
        done = self.deploy("bench", "faults", "--json", str(out), *words, timeout_s=560)
        print(done.stdout, done.stderr)
        assert not done.returncode, done.stderr
        return {result["scenario"]: result for result in json.loads(out.read_text())["results"]}

    def processes(self, title: str) -> list[int]:
        """Those that it started, at whatever remove, with this in their command line."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # what was killed is a zombie for a while
                if title in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    @contextmanager
    def no_new_processes(self) -> Iterator[None]:
        """Successors of what dies wait until this is over."""
        children = psutil.Process(self.process.pid).children()
        [server] = [p for p in children if "services.forking.server" in " ".join(p.cmdline())]
        server.suspend()
        try:
            yield
        finally:
            server.resume()

    def stop(self) -> None:
        """Ctrl-C; what does not end then is killed."""
        try:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Applications:
    """The one that runs; another one takes its place."""

    folder: Path
    collector: Collector  # of the traces of `twice`
    current: Application | None = None
    started: list[tuple[str, ...]] = field(default_factory=list)  # the words of each, in turn

    def twice(self) -> Application:
        """The demo model, every expert on two shards; what a client asks to trace is traced."""
        tracing = (f"tracing.endpoint={self.collector.url}", "tracing.sample_ratio=0.0")
        return self.running(*TWICE, *tracing)

    def running(self, *settings: str, model: Path | None = None) -> Application:
        """A model, or the demo model, with these settings; started if it is not the one there."""
        words = ["--demo"] if model is None else ["--model", str(model)]
        for setting in (f"name={NAME}", *settings):
            words += ["--set", setting]
        if self.current is None or self.started[-1] != tuple(words):
            self.stop()
            self.started.append(tuple(words))
            self.current = self._start(words)
        return self.current

    def _start(self, options: list[str]) -> Application:
        port = free_port()
        log = self.folder / f"up-{len(self.started)}.log"
        words = [sys.executable, "-m", "deploy", "up", "--port", str(port), *options]
        with open(log, "w") as sink:
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        application = Application(f"http://127.0.0.1:{port}", log, process)
        try:
            end_s = time.monotonic() + START_TIMEOUT_S
            while "ready: " not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end_s, log.read_text()
                time.sleep(0.5)
        except BaseException:
            application.stop()
            raise
        return application

    def stop(self) -> None:
        """End the one that runs."""
        if self.current is not None:
            self.current.stop()
            self.current = None


ORDER = (
    "application",
    "gateway",
    "conformance",
    "tracing",
    "metrics",
    "operation",
    "dashboard",
    "faults",
)
"""Modules that use one and the same application; it is started once if they come together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first, in this order; all others as they were."""
    names = [f"test_{name}" for name in ORDER]
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    here.sort(key=lambda i: names.index(i.path.stem) if i.path.stem in names else len(names))
    items[:] = [item for item in items if item not in here] + here


@pytest.fixture(scope="session")
def applications(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applications]:
    """Starts and ends real applications."""
    running = Applications(tmp_path_factory.mktemp("applications"), Collector())
    try:
        yield running
    finally:
        running.stop()
        running.collector.close()


@pytest.fixture
def application(applications: Applications) -> Application:
    """The demo model, every expert on two shards."""
    return applications.twice()

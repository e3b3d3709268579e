"""Ctrl-C at any moment of `up`: exit code 130, and not one process is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from deploy.free_port import free_port
from deploy.processes import ProcessId, descendants, identify, is_alive, kill_processes
from deploy.records import run_folder

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ASKING = "asking vLLM whether it knows the model ..."
DEPLOY = ("deploy",)
KNOWN, ASKED = (("tests.support.up_as", how) for how in ("known", "asked"))
MARKER = "EXPERTMESH_TEST_RUN"
STEP_TIMEOUT_S = 300.0  # on a machine that is busy with other things; 20 s if it is not
STOP_TIMEOUT_S = 150.0  # the same: Ray holds Python's lock while it waits for its processes


@dataclass
class Up:
    """A running `up`, and every process that was ever seen below it."""

    process: subprocess.Popen[str]
    log: Path
    name: str  # of the deployment
    mark: str
    seen: set[ProcessId] = field(default_factory=set)

    def look(self) -> str:
        """Note which processes there are; returns what was printed so far."""
        owner = identify(self.process.pid)
        if owner is not None:
            self.seen |= {owner, *descendants(owner)}
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        end_s = time.monotonic() + STEP_TIMEOUT_S
        while text not in self.look():
            assert self.process.poll() is None, f"ended before {text!r}: {self.log.read_text()}"
            assert time.monotonic() < end_s, f"no {text!r} in {self.log.read_text()}"
            time.sleep(0.1)

    def interrupt(self) -> int:
        """Press Ctrl-C, which reaches the whole process group; returns the exit code."""
        self.look()
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, which is to come soon."""
        end_s = time.monotonic() + STOP_TIMEOUT_S
        while (code := self.process.poll()) is None:
            assert time.monotonic() < end_s, f"does not stop: {self.log.read_text()}"
            self.look()
            time.sleep(0.1)
        return code

    def left(self) -> list[str]:
        """Processes that were started below it, or carry its mark, and still run."""
        marked = {
            process
            for each in psutil.process_iter()
            if _environment(each).get(MARKER) == self.mark
            and (process := identify(each.pid)) is not None
        }
        return [_name(process) for process in self.seen | marked if is_alive(process)]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _name(process: ProcessId) -> str:
    try:
        return f"{process.pid} {' '.join(psutil.Process(process.pid).cmdline())[:100]}"
    except psutil.Error:
        return str(process.pid)


class StartUp(Protocol):
    def __call__(self, module: tuple[str, ...], *words: str) -> Up: ...


@pytest.fixture
def start_up(checkpoint: Callable[[str], Path], tmp_path: Path) -> Iterator[StartUp]:
    """Starts a module's `up` on a tiny checkpoint, as a shell would: in its own process group."""
    started: list[Up] = []

    def start(module: tuple[str, ...], *more: str) -> Up:
        mark, log = uuid.uuid4().hex, tmp_path / "up.log"
        name = f"ctrl-c-{mark[:8]}"
        port = free_port()
        words = ["up", "--model", str(checkpoint("mixtral")), "--port", str(port), *more]
        words += ["--set", f"name={name}", "--set", "attention.kv_cache_gib=0.1"]
        with open(log, "w") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, *words],
                cwd=ROOT,
                env=os.environ | {MARKER: mark},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        started.append(Up(process, log, name, mark))
        return started[-1]

    yield start
    for up in started:
        up.look()
        kill_processes(up.seen)
        up.process.wait(STOP_TIMEOUT_S)
        shutil.rmtree(run_folder(up.name))


@pytest.mark.parametrize(
    ("module", "line", "later_s"),
    [
        (ASKED, ASKING, 1.0),
        (KNOWN, "starting Ray ...", 0.5),  # Ray is being imported
        (KNOWN, "starting Ray ...", 2.5),  # its processes are coming up
        (KNOWN, "AttentionServer:", 2.0),  # actors are coming up
    ],
    ids=["asking-vllm", "importing-ray", "starting-ray", "deploying"],
)
def test_ctrl_c_leaves_no_process_behind(
    start_up: StartUp, module: tuple[str, ...], line: str, later_s: float
) -> None:
    up = start_up(module)
    up.wait_for(line)
    time.sleep(later_s)
    assert up.interrupt() == 130
    assert up.left() == []
    assert "Traceback" not in up.log.read_text()


def test_ctrl_c_while_a_detached_start_is_watched_stops_it_too(start_up: StartUp) -> None:
    up = start_up(DEPLOY, "--detach")
    up.wait_for(ASKING)
    assert len(up.seen) >= 2
    assert up.interrupt() == 130
    assert up.left() == []


def test_down_stops_a_start_and_leaves_no_process_behind(start_up: StartUp) -> None:
    up = start_up(KNOWN)
    up.wait_for("starting Ray ...")
    time.sleep(2.5)
    up.look()
    down = [sys.executable, "-m", "deploy", "down", "--name", up.name]
    done = subprocess.run(down, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert up.wait() == 143
    assert up.left() == []

"""`up --detach`: what is started, what is shown of it, and what Ctrl-C does to it."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy import detach
from deploy.detach import LogView, start_in_background, stop_background, up_detached
from deploy.processes import ProcessId, this_process
from deploy.records import Claim, run_folder
from deploy.signals import Stopped
from services.config import load_config

CONFIG = load_config(None, {})
NEVER = 2**22 + 1  # no process has this id


@dataclass
class FakeUp:
    """A background `up` that does one thing of `acts` at each look."""

    acts: list[Callable[["FakeUp"], None]]
    pid: int = NEVER
    code: int | None = None
    got: list[str] = field(default_factory=list)
    log: Path = field(default_factory=lambda: run_folder("expertmesh") / "up.log")

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.got.append("SIGTERM")
        self.code = -15

    def say(self, text: str) -> None:
        with open(self.log, "a") as log:
            log.write(text)


@dataclass
class Shown:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def runs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = {signum: signal.getsignal(signum) for signum in (2, 15, 1)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def show(monkeypatch: pytest.MonkeyPatch, child: FakeUp) -> Shown:
    def sleep(seconds: float) -> None:
        child.acts.pop(0)(child)

    child.log.touch()
    monkeypatch.setattr(detach, "start_in_background", lambda argv, log: child)
    monkeypatch.setattr(detach.watch, "__defaults__", (sleep,))
    out, err = io.StringIO(), io.StringIO()
    code = up_detached(["up", "--detach"], CONFIG, out, err)
    return Shown(code, out.getvalue(), err.getvalue())


def becomes_ready(child: FakeUp) -> None:
    claim = Claim(CONFIG, "http://127.0.0.1:8000/v1")
    claim.update(owner=ProcessId(child.pid, 1), is_ready=True)
    child.say("[  30.0 s] ready\n")


def fails(child: FakeUp) -> None:
    child.say("error: gateway.port 8000 is taken\nby another process\n")
    child.code = 2


def test_progress_is_shown_until_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = FakeUp([lambda up: up.say("[   1.0 s] starting Ray ...\n[ 2"), becomes_ready])
    shown = show(monkeypatch, starts)
    assert shown.code == 0
    assert shown.err == ""
    assert shown.out.splitlines() == [
        "[   1.0 s] starting Ray ...",
        "[ 2[  30.0 s] ready",
        f"left running as process {NEVER}; what it says: {starts.log}",
        "stop it with: python -m deploy down --name expertmesh",
    ]


def test_record_of_another_process_is_not_taken_for_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def other_is_ready(child: FakeUp) -> None:
        Claim(CONFIG, "").update(is_ready=True)

    assert show(monkeypatch, FakeUp([other_is_ready, fails])).code == 2


def test_failure_has_its_message_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show(monkeypatch, FakeUp([lambda up: up.say("[   1.0 s] starting\n"), fails]))
    assert shown.code == 2
    assert shown.out == "[   1.0 s] starting\n"
    assert shown.err == "error: gateway.port 8000 is taken\nby another process\n"


def test_killed_by_a_signal_is_told_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(child: FakeUp) -> None:
        child.code = -9

    assert show(monkeypatch, FakeUp([dies])).code == 137


def test_ctrl_c_while_waiting_stops_the_background_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(child: FakeUp) -> None:
        raise Stopped(signal.SIGINT)

    child = FakeUp([interrupted])
    with pytest.raises(Stopped):
        show(monkeypatch, child)
    assert child.got == ["SIGTERM"]


def test_background_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[ProcessId] = []
    monkeypatch.setattr(detach, "kill_processes", killed.extend)
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    stubborn = FakeUp([], pid=os.getpid())
    stubborn.log.touch()
    monkeypatch.setattr(stubborn, "terminate", lambda: None)
    view = LogView(stubborn.log, io.StringIO(), io.StringIO())
    stop_background(stubborn, view, clock=lambda: now_s, sleep=sleep)
    assert this_process() in killed
    assert now_s == pytest.approx(detach.STOP_WAIT_S, abs=1)


def test_same_words_are_started_without_detach(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    def popen(words: list[str], **options: Any) -> FakeUp:
        called.update(options, words=words, log=Path(options["stdout"].name))
        return FakeUp([])

    monkeypatch.setattr(subprocess, "Popen", popen)
    log = run_folder("expertmesh") / "up.log"
    log.write_text("of an earlier one")
    start_in_background(["up", "--detach", "--port", "8001"], log)
    assert called["words"] == [sys.executable, "-m", "deploy", "up", "--port", "8001"]
    assert (called["stdin"], called["stderr"]) == (subprocess.DEVNULL, subprocess.STDOUT)
    assert called["start_new_session"]
    assert called["log"] == log
    assert log.read_text() == ""
    assert log.stat().st_mode & 0o777 == 0o600

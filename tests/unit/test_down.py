"""`down`: whom it asks to stop, whom it kills, and what it leaves."""

import io
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy import down as down_module
from deploy.down import down
from deploy.processes import ProcessId, descendants, identify, is_alive, this_process
from deploy.progress import Progress
from deploy.records import Claim, RunRecord, find_records
from router.errors import EngineError
from services.config import load_config

GENTLE = "print('up', flush=True); input()"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); {GENTLE}"
WITH_CHILD = (  # the child says that it is up
    "import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN); "
    f"subprocess.run([sys.executable, '-c', {STUBBORN!r}])"
)


@dataclass
class FakeRemover:
    deleted: list[str] = field(default_factory=list)
    error: Exception | None = None
    n_open: int = 0

    def drain(self, record: RunRecord, grace_s: float) -> int:
        if self.error:
            raise self.error
        assert is_alive(record.owner)
        return self.n_open

    def delete_app(self, record: RunRecord) -> None:
        if self.error:
            raise self.error
        self.deleted.append(record.name)


@pytest.fixture(autouse=True)
def runs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(down_module, "STOP_WAIT_S", 0.3)
    monkeypatch.setattr(down_module, "LOOK_S", 0.1)


@pytest.fixture
def start() -> Iterator["Starter"]:
    with Starter() as starter:
        yield starter


class Starter:
    """Starts programs that wait, and ends them."""

    def __enter__(self) -> "Starter":
        self._children: list[subprocess.Popen[bytes]] = []
        return self

    def __call__(self, program: str) -> ProcessId:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        process = identify(child.pid)
        assert process is not None
        return process

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.communicate()


def record(owner: ProcessId, name: str = "one", *, joined: bool = False, **more: object) -> None:
    values = {"name": name} | ({"ray.address": "auto"} if joined else {})
    Claim(load_config(None, values), "").update(owner=owner, **more)


def run_down(
    remover: FakeRemover | None = None, name: str | None = None, *, grace_s: float = 0.0
) -> str:
    out = io.StringIO()
    down(name, remover or FakeRemover(), Progress(out, beats=False), grace_s=grace_s)
    return out.getvalue()


def test_recorded_process_is_asked_to_stop(start: Starter) -> None:
    owner = start(GENTLE)
    record(owner)
    out = run_down()
    assert not is_alive(owner)
    assert f"stopping one, process {owner.pid}: done" in out
    assert "killed" not in out
    assert find_records() == []


def test_one_that_does_not_stop_is_killed_with_all_it_started(start: Starter) -> None:
    owner = start(WITH_CHILD)
    [child] = descendants(owner)
    record(owner)
    out = run_down()
    assert not is_alive(owner)
    assert not is_alive(child)
    assert "killed 2 processes that had not stopped by themselves" in out


def test_what_a_dead_one_has_left_is_killed(start: Starter) -> None:
    left = start(STUBBORN)
    dead = ProcessId(this_process().pid, 1)
    record(dead, processes=(left,))
    out = run_down()
    assert not is_alive(left)
    assert f"clearing up after one, whose process {dead.pid} is gone" in out
    assert find_records() == []


def test_stranger_with_a_recorded_id_is_left_alone(start: Starter) -> None:
    stranger = start(GENTLE)
    before = ProcessId(stranger.pid, stranger.start_ticks - 1)
    record(before, processes=(before,))
    run_down()
    assert is_alive(stranger)


def test_other_names_are_left_alone(start: Starter) -> None:
    one, two = start(GENTLE), start(GENTLE)
    record(one, "one")
    record(two, "two")
    run_down(name="one")
    assert [is_alive(one), is_alive(two)] == [False, True]
    assert [found.name for found in find_records()] == ["two"]


def test_down_may_be_repeated(start: Starter) -> None:
    record(start(GENTLE))
    run_down()
    assert "nothing runs" in run_down()


def test_joined_cluster_is_asked_only_if_nobody_could_do_it_in_order(start: Starter) -> None:
    orderly, dead = FakeRemover(), FakeRemover()
    record(start(GENTLE), joined=True)
    run_down(orderly)
    record(ProcessId(this_process().pid, 1), joined=True)
    run_down(dead)
    assert (orderly.deleted, dead.deleted) == ([], ["one"])


def test_record_stays_if_the_joined_cluster_cannot_be_asked() -> None:
    record(ProcessId(this_process().pid, 1), joined=True)
    with pytest.raises(EngineError):
        run_down(FakeRemover(error=EngineError("Ray did not answer")))
    assert [found.name for found in find_records()] == ["one"]


def test_local_ray_is_not_asked_for_anything() -> None:
    remover = FakeRemover()
    record(ProcessId(this_process().pid, 1))
    run_down(remover)
    assert remover.deleted == []


def test_term_is_what_is_sent(monkeypatch: pytest.MonkeyPatch, start: Starter) -> None:
    sent: list[tuple[ProcessId, signal.Signals]] = []
    monkeypatch.setattr(down_module, "send", lambda *what: sent.append(what))
    owner = start(GENTLE)
    record(owner)
    run_down()
    assert sent == [(owner, signal.SIGTERM)]


def test_open_requests_are_waited_for_and_counted_if_they_do_not_end(start: Starter) -> None:
    record(start(GENTLE))
    shown = run_down(FakeRemover(n_open=3), grace_s=5)
    assert "waiting up to 5 s for open requests" in shown
    assert "3 requests have not finished" in shown
    assert find_records() == []


def test_a_cluster_that_does_not_answer_is_stopped_all_the_same(start: Starter) -> None:
    record(start(GENTLE))
    shown = run_down(FakeRemover(error=EngineError("no answer")), grace_s=5)
    assert "open requests cannot be waited for: no answer" in shown
    assert find_records() == []

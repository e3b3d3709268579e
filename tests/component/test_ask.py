"""Asking a cluster that may be half dead: what was answered is kept, and no wait is for ever."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from deploy.ask import RunStatus, ask_status, delete_app
from deploy.processes import ProcessId
from deploy.records import RunRecord
from router.errors import EngineError
from services.messages import ControllerStatus
from services.ray_session import DeploymentState

RECORD = RunRecord("one", ProcessId(7, 70), "", False, "127.0.0.1:6379", "token")
STATE = DeploymentState("Controller", "HEALTHY", 1, "")
PROLOGUE = """
import pickle, sys, time
from router.errors import ConfigError
from services.ray_session import DeploymentState
def answer(value):
    sys.stdout.buffer.write(pickle.dumps(value)); sys.stdout.buffer.flush()
"""
STARTED = "answer('started')\n"
STATES = "answer((DeploymentState('Controller', 'HEALTHY', 1, ''),))\n"

Probe = Callable[[str], None]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Puts a program in the place of `deploy.probe`."""
    real = subprocess.Popen

    def put(program: str) -> None:
        def popen(words: list[str], **options: Any) -> Any:
            assert words[1:3] == ["-m", "deploy.probe"]
            assert words[4:] == ["127.0.0.1:6379", "token", "one"]
            return real([sys.executable, "-c", PROLOGUE + program], **options)

        monkeypatch.setattr(subprocess, "Popen", popen)

    return put


def test_everything_that_is_answered_is_told(probe: Probe) -> None:
    known = "ControllerStatus(7, True, 2, '', (), {'x': 7})"
    probe(f"{STARTED}{STATES}from services.messages import ControllerStatus\nanswer({known})")
    known_here = ControllerStatus(7, True, 2, "", (), {"x": 7})
    assert ask_status(RECORD) == RunStatus(RECORD, (STATE,), known_here)


def test_controller_that_hangs_does_not_hide_the_deployments(probe: Probe) -> None:
    probe(STARTED + STATES + "time.sleep(60)")
    found = ask_status(RECORD, timeout_s=0.3)
    assert found.deployments == (STATE,)
    assert found.problem.startswith("the controller did not answer within 0.")


def test_ray_that_hangs_is_told(probe: Probe) -> None:
    probe(STARTED + "time.sleep(60)")
    assert ask_status(RECORD, timeout_s=0.1).problem == "Ray did not answer within 0.1 s"


def test_error_that_is_answered_is_told(probe: Probe) -> None:
    probe(STARTED + "answer(ConfigError('nobody listens'))")
    assert ask_status(RECORD).problem == "nobody listens"


def test_probe_that_dies_is_told_with_its_last_words(probe: Probe) -> None:
    probe(STARTED + "sys.exit('GCS is gone')")
    assert ask_status(RECORD).problem == "Ray could not be asked: GCS is gone"


def test_ray_that_is_not_there_yet_is_not_asked() -> None:
    starting = RunRecord("one", ProcessId(7, 70), "", False)
    assert ask_status(starting).problem == "Ray is still being started"


def test_deleting_raises_what_went_wrong(probe: Probe) -> None:
    probe(STARTED + "answer('deleted')")
    delete_app(RECORD)
    probe(STARTED + "sys.exit('no')")
    with pytest.raises(EngineError, match="Ray could not be asked: no"):
        delete_app(RECORD)

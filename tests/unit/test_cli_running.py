"""`status` and `down` against a fake platform: which deployments are meant, and what is said."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from deploy.processes import ProcessId
from deploy.records import Claim
from router.errors import CapacityError
from services.config import load_config
from tests.support.fake_backend import FakeBackend, run


@pytest.fixture(autouse=True)
def no_real_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def claim(name: str) -> Claim:
    return Claim(load_config(None, {"name": name}), "http://127.0.0.1:8000/v1")


def test_status_asks_every_deployment_that_runs() -> None:
    claim("one")
    claim("two")
    backend = FakeBackend()
    result = run(backend, "status")
    assert result.code == 0
    assert sorted(backend.asked) == ["status of one", "status of two"]
    assert result.out.index("one: starting") < result.out.index("two: starting")


def test_status_of_one_name_asks_no_other() -> None:
    claim("one")
    claim("two")
    backend = FakeBackend()
    shown = json.loads(run(backend, "status", "--name", "two", "--json").out)
    assert [each["name"] for each in shown["runs"]] == ["two"]
    assert backend.asked == ["status of two"]


@pytest.mark.parametrize("argv", [[], ["--name", "other"]])
def test_status_of_nothing_is_told(argv: list[str]) -> None:
    result = run(FakeBackend(), "status", *argv)
    assert result.code == 2
    assert result.err.startswith("error: nothing runs")
    assert "start it with: python -m deploy up --demo" in result.err


def test_status_does_not_show_the_dead() -> None:
    claim("one").update(owner=ProcessId(os.getpid(), 1))
    result = run(FakeBackend(), "status")
    assert result.code == 2
    assert "nothing runs (one died; clear up with: python -m deploy down)" in result.err


def test_status_of_one_that_served_and_does_not_answer_is_a_failure() -> None:
    claim("one").update(is_ready=True)
    result = run(FakeBackend(problem="Ray did not answer within 2.0 s"), "status")
    assert result.code == 1
    assert "NOT KNOWN: Ray did not answer within 2.0 s" in result.out


def test_name_that_none_can_have_is_refused() -> None:
    result = run(FakeBackend(), "status", "--name", "../else")
    assert result.code == 2
    assert "name is '../else'" in result.err


def test_rebalance_prints_the_verdict_of_every_deployment() -> None:
    claim("one")
    claim("two")
    result = run(FakeBackend(), "rebalance", "--name", "two")
    assert result.code == 0
    assert result.out == (
        "two: accepted, cause: asked for; saves 30 rows; 4 moves, max/mean 1.50 -> 1.10\n"
    )


def test_rebalance_that_cannot_be_is_told_with_its_reason() -> None:
    claim("one")
    backend = FakeBackend(errors={"rebalance one": CapacityError("no rebalance now: 3 moves")})
    result = run(backend, "rebalance")
    assert (result.code, result.err) == (1, "error: no rebalance now: 3 moves\n")


def test_down_of_nothing_is_no_error() -> None:
    backend = FakeBackend()
    results = [run(backend, "down"), run(backend, "down", "--name", "one")]
    assert [result.code for result in results] == [0, 0]
    assert "nothing runs" in results[0].out
    assert "no deployment named one runs" in results[1].out
    assert backend.asked == []

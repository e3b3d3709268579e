"""The token of a local Ray is for this user alone; its proxies are told of our middleware."""

import importlib
import os
from pathlib import Path

import pytest

from services.local_ray import PROXY_HOOK, make_private_token, prepare_local_ray


@pytest.fixture(autouse=True)
def no_other_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(PROXY_HOOK[0], "to be put back afterwards")
    monkeypatch.delenv(PROXY_HOOK[0])


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_token_is_made_where_ray_looks_for_it_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    make_private_token(path)
    assert len(path.read_text()) == 64
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert [file.name for file in path.parent.iterdir()] == ["auth_token"]


def test_token_that_is_there_stays_and_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "auth_token"
    path.write_text("mine")
    path.chmod(0o644)
    make_private_token(path)
    assert (path.read_text(), mode(path)) == ("mine", 0o600)


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_token_that_the_operator_keeps_elsewhere_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    make_private_token(tmp_path / "auth_token")
    assert list(tmp_path.iterdir()) == []


def test_no_token_is_made_for_a_ray_that_asks_for_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("services.local_ray.use_loopback", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_local_ray()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    prepare_local_ray()
    assert os.listdir(tmp_path) == [".ray"]


def test_serves_proxies_are_told_of_a_middleware_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.local_ray.use_loopback", lambda: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_local_ray()
    module, _, function = os.environ[PROXY_HOOK[0]].rpartition(".")
    assert getattr(importlib.import_module(module), function)()
    monkeypatch.setenv(PROXY_HOOK[0], "operators.own")
    prepare_local_ray()
    assert os.environ[PROXY_HOOK[0]] == "operators.own"

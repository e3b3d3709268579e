"""The folder of a deployment's sockets is for its user alone."""

import os
from pathlib import Path

import pytest

from router.errors import ConfigError
from services.config import load_config
from services.paths import run_dir


def test_the_folder_and_its_parent_are_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = run_dir(load_config(None, {"name": "mine"}))
    assert folder == tmp_path / f"expertmesh-{os.getuid()}" / "mine"
    for each in (folder, folder.parent):
        assert each.stat().st_mode & 0o777 == 0o700


def test_an_open_folder_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    folder = run_dir(load_config(None, {"transport.run_dir": str(tmp_path / "open")}))
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(ConfigError, match=rf"not to {stranger}: .* transport\.run_dir"):
        run_dir(load_config(None, {"transport.run_dir": str(tmp_path)}))

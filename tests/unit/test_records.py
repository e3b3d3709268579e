"""The run record: who may write it, who is believed, and when it goes."""

import json
import os
import socket
import tempfile
from pathlib import Path

import pytest

from deploy import records
from deploy.processes import ProcessId, this_process
from deploy.records import Claim, RunRecord, find_records, read_record, remove_record, run_folder
from router.errors import ConfigError
from services.config import DeploymentConfig, load_config

URL = "http://127.0.0.1:8000/v1"
DEAD = ProcessId(os.getpid(), 1)  # this id, but started at another time


@pytest.fixture(autouse=True)
def runs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def config_named(name: str, **overrides: object) -> DeploymentConfig:
    return load_config(None, {"name": name, **overrides})


def test_record_reads_back_as_it_was_written() -> None:
    claim = Claim(config_named("one"), URL)
    others = (ProcessId(7, 70), ProcessId(8, 80))
    claim.update(address="127.0.0.1:1", auth_mode="token", is_ready=True, processes=others)
    assert read_record(claim.folder) == RunRecord(
        "one", this_process(), URL, False, "127.0.0.1:1", "token", True, others
    )


def test_record_is_for_this_user_alone() -> None:
    folder = Claim(config_named("one"), URL).folder
    assert (folder / "run.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_record_is_replaced_as_a_whole() -> None:
    claim = Claim(config_named("one"), URL)
    before = (claim.folder / "run.json").stat().st_ino
    claim.update(is_ready=True)
    assert (claim.folder / "run.json").stat().st_ino != before
    assert {file.name for file in claim.folder.iterdir()} == {"run.json", "run.lock"}


def test_record_that_has_not_changed_is_not_written() -> None:
    claim = Claim(config_named("one"), URL)
    before = (claim.folder / "run.json").stat().st_ino
    claim.update(is_ready=False)
    assert (claim.folder / "run.json").stat().st_ino == before


def test_name_of_a_living_deployment_is_refused() -> None:
    Claim(config_named("one"), URL)
    with pytest.raises(ConfigError, match=rf"named one already runs: process {os.getpid()}, http"):
        Claim(config_named("one"), URL)
    Claim(config_named("two"), URL)


def test_record_of_the_dead_is_replaced_and_what_it_left_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[ProcessId] = []
    monkeypatch.setattr(records, "end_processes", ended.extend)
    left = ProcessId(7, 70)
    Claim(config_named("one"), URL).update(owner=DEAD, processes=(left,))
    claim = Claim(config_named("one"), URL)
    assert read_record(claim.folder) == claim.record
    assert ended == [left]


def test_release_removes_the_record_and_the_sockets_of_dead_actors() -> None:
    claim = Claim(config_named("one"), URL)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(claim.folder / "shard.sock"))
    (claim.folder / "up.log").write_text("kept")
    claim.release()
    assert {file.name for file in claim.folder.iterdir()} == {"run.lock", "up.log"}


def test_release_leaves_the_record_of_a_successor() -> None:
    claim = Claim(config_named("one"), URL)
    remove_record(RunRecord("one", DEAD, URL, False))
    assert read_record(claim.folder) == claim.record


def test_joined_cluster_is_noted() -> None:
    assert Claim(config_named("one", **{"ray.address": "auto"}), URL).record.is_joined


def test_records_are_found_by_name_wherever_the_sockets_are(tmp_path: Path) -> None:
    Claim(config_named("two"), URL)
    Claim(config_named("one", **{"transport.run_dir": str(tmp_path / "else")}), URL)
    assert [record.name for record in find_records()] == ["one", "two"]
    assert [record.name for record in find_records("two")] == ["two"]
    assert find_records("three") == []


def test_record_of_another_user_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Claim(config_named("one"), URL).folder
    me = os.getuid()
    os.utime(folder)  # the folder's name holds the user, so it is found before the change
    monkeypatch.setattr("deploy.records.os.getuid", lambda: me + 1)
    with pytest.raises(ConfigError, match=rf"belongs to user {me}, not to you \({me + 1}\)"):
        read_record(folder)


def test_link_in_place_of_a_record_is_not_followed(tmp_path: Path) -> None:
    folder = run_folder("one")
    (folder / "run.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_record(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"owner": {"pid": 1}})])
def test_file_that_is_no_record_is_named(text: str) -> None:
    folder = run_folder("one")
    (folder / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json is not a run record: .* Remove it"):
        read_record(folder)

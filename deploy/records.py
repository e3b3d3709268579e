"""What `up` leaves in the deployment's run folder for `status`, `down` and a second `up`.

One record a deployment name and user, replaced as a whole. It is believed only if this user wrote
it: `down` kills what it names.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploy.processes import ProcessId, end_processes, is_alive, this_process
from router.errors import ConfigError
from services.config import DeploymentConfig, load_config
from services.paths import run_dir

RECORD = "run.json"
LOCK = "run.lock"
UP_LOG = "up.log"  # what a detached `up` prints
LIBRARY_LOG = "libraries.log"  # what Ray and others print in `up`'s process


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One `up`."""

    name: str  # of the Serve application
    owner: ProcessId  # the `up`
    url: str  # where the API is, or will be
    is_joined: bool  # Ray is not ours: it stays when the application goes
    address: str = ""  # of Ray's GCS; empty until it is known
    auth_mode: str = ""  # RAY_AUTH_MODE of that Ray
    is_ready: bool = False  # a first token was served
    processes: tuple[ProcessId, ...] = ()  # the owner's descendants when last looked at


def run_folder(name: str) -> Path:
    """Where a deployment's record and logs are; made if need be. Raises ConfigError for a bad name.

    `transport.run_dir` does not move it: a deployment is found by its name alone.
    """
    return run_dir(load_config(None, {"name": name}))


def find_records(name: str | None = None) -> list[RunRecord]:
    """The records of this user's deployments, or of the one called `name`, alive or not."""
    if name is not None:
        record = read_record(run_folder(name))
        return [] if record is None else [record]
    files = sorted(run_dir(DeploymentConfig()).parent.glob(f"*/{RECORD}"))
    return [record for file in files if (record := read_record(file.parent)) is not None]


def read_record(folder: Path) -> RunRecord | None:
    """The record in `folder`, if there is one.

    Raises ConfigError if another user wrote it, or it is none.
    """
    path = folder / RECORD
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Remove it.") from error
    with open(descriptor, encoding="utf-8") as file:
        if (writer := os.fstat(descriptor).st_uid) != os.getuid():
            raise ConfigError(
                f"{path} belongs to user {writer}, not to you ({os.getuid()}), and is not "
                "believed. Have it removed, or use another name."
            )
        try:
            return _parse(json.load(file))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path} is not a run record: {error!r}. Remove it; end what it was for by hand."
            ) from error


def refuse_if_running(name: str) -> None:
    """Raise ConfigError if a deployment of this name is alive."""
    record = read_record(run_folder(name))
    if record is not None and is_alive(record.owner):
        raise ConfigError(
            f"a deployment named {name} already runs: process {record.owner.pid}, {record.url}. "
            f"Stop it with: python -m deploy down --name {name}, or give this one another name: "
            "--set name=..."
        )


class Claim:
    """This process's right to a deployment's name, and its record while it lasts."""

    def __init__(self, config: DeploymentConfig, url: str) -> None:
        """Take the name. Raises ConfigError if it is taken by one that lives.

        What a dead one has left running is ended.
        """
        self.folder = run_folder(config.name)
        is_joined = config.ray.address is not None
        self.record = RunRecord(config.name, this_process(), url, is_joined)
        with _locked(self.folder):
            refuse_if_running(config.name)
            stale = read_record(self.folder)
            self._write()
        if stale is not None:
            end_processes(stale.processes)

    def update(self, **changes: Any) -> None:
        """Write the record anew, if anything changed."""
        changed = replace(self.record, **changes)
        if changed != self.record:
            self.record = changed
            self._write()

    def release(self) -> None:
        """Remove the record."""
        remove_record(self.record)

    def _write(self) -> None:
        unfinished = self.folder / f"{RECORD}.{os.getpid()}"
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self.record), file, indent=2)
        unfinished.replace(self.folder / RECORD)


def remove_record(record: RunRecord) -> None:
    """Remove the record of this `up`, if no other has taken its place, and its actors' sockets."""
    folder = run_folder(record.name)
    with _locked(folder):
        found = read_record(folder)
        if found is not None and found.owner == record.owner:
            for socket in [file for file in folder.iterdir() if file.is_socket()]:
                socket.unlink()
            (folder / RECORD).unlink()


def _parse(values: dict[str, Any]) -> RunRecord:
    owner = ProcessId(**values.pop("owner"))
    processes = tuple(ProcessId(**process) for process in values.pop("processes"))
    return RunRecord(owner=owner, processes=processes, **values)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two commands from changing the record at once; the system unlocks for those that die."""
    with open(folder / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

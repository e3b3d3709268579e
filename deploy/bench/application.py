"""A running local application as a benchmark sees it: its API, its controller, its processes."""

import os
import signal
import time
from collections.abc import Callable

import httpx
import psutil

from deploy.processes import ProcessId, is_alive
from deploy.records import RunRecord, find_records
from router.errors import ConfigError, EngineError, RoutingError
from services.cluster import controller_status, rebalance
from services.messages import ControllerStatus, DecisionStatus
from services.ray_session import RayAccess, connect, prepare_access

POLL_S = 0.25
PROMPT = "Say something"


class RunningApplication:
    """Joins its Ray for as long as this process lives."""

    def __init__(self, record: RunRecord) -> None:
        self.name = record.name
        self.url = record.url
        access = RayAccess(record.address, record.auth_mode)
        prepare_access(access)
        connect(access)
        with httpx.Client(trust_env=False, timeout=30) as client:
            listed = client.get(f"{record.url}/models").raise_for_status().json()
        self.model = str(listed["data"][0]["id"])

    def status(self) -> ControllerStatus:
        """What its controller knows. Raises RoutingError if that is away."""
        return controller_status(self.name)

    def rebalance(self) -> DecisionStatus:
        """As `python -m deploy rebalance`."""
        return rebalance(self.name)

    def a_shard(self) -> int:
        """Process id of one shard."""
        return int(self.status().shards[0].shard_id.split("-")[0])

    def controller(self) -> int:
        """Process id of the controller."""
        title = f":{self.name}:Controller"
        for process in psutil.process_iter(["cmdline"]):
            if title in " ".join(process.info["cmdline"] or []):
                return int(process.pid)
        raise EngineError(f"no process of {self.name}'s controller runs on this machine")

    def wait_until(
        self, is_so: Callable[[ControllerStatus | None], bool], timeout_s: float
    ) -> float:
        """Seconds until that is so; None stands for a controller that is away.

        Raises EngineError when the time is over.
        """
        started_s = time.monotonic()
        while time.monotonic() - started_s < timeout_s:
            if is_so(self._status_if_there()):
                return time.monotonic() - started_s
            time.sleep(POLL_S)
        raise EngineError(f"what was waited for of {self.name} did not come in {timeout_s:.0f} s")

    def _status_if_there(self) -> ControllerStatus | None:
        try:
            return self.status()
        except RoutingError:
            return None


def find_application(name: str | None) -> RunningApplication:
    """The application that runs, by name if there are several. Raises ConfigError."""
    return RunningApplication(_find_record(name))


def find_owner(name: str | None) -> ProcessId:
    """The process that all others of that application come from. Raises ConfigError."""
    return _find_record(name).owner


def _find_record(name: str | None) -> RunRecord:
    records = [r for r in find_records(name) if is_alive(r.owner) and r.is_ready]
    if len(records) != 1:
        names = ", ".join(r.name for r in records) or "none"
        raise ConfigError(
            f"one running application is needed, found: {names}. Start one with: python -m deploy "
            "up --demo --set pool.shards=3 --set pool.redundancy=2, or choose one with --name."
        )
    return records[0]


def send(process: int, number: signal.Signals) -> None:
    """Send a signal to a process of the application."""
    os.kill(process, number)

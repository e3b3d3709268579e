"""Asks a running deployment what it does, within seconds, however it is.

The asking itself is in `deploy.probe`, a process that is killed when it takes too long; what it
had answered by then is kept.
"""

import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from deploy.probe import STARTED
from deploy.records import RunRecord
from router.errors import EngineError, PlatformError
from services.cluster import CALL_TIMEOUT_S, REBALANCE_TIMEOUT_S
from services.config import DeploymentConfig
from services.messages import ControllerStatus, DecisionStatus
from services.ray_session import DeploymentState, RayAccess

IMPORT_TIMEOUT_S = 30.0  # for Python to read Ray, on a very busy machine
ANSWER_TIMEOUT_S = 2.0  # for the cluster and the controller together; it takes them 0.2 s
DELETE_TIMEOUT_S = 60.0
DEPLOY_TIMEOUT_S = 180.0  # most of it for importing vLLM


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What is known of one deployment."""

    record: RunRecord
    deployments: tuple[DeploymentState, ...] = ()
    controller: ControllerStatus | None = None
    problem: str = ""  # why something is missing


def ask_status(record: RunRecord, timeout_s: float = ANSWER_TIMEOUT_S) -> RunStatus:
    """Ask the cluster; raises nothing, what is missing is told in `problem`."""
    if not record.address:
        return RunStatus(record, problem="Ray is still being started")
    deployments: tuple[DeploymentState, ...] = ()
    try:
        with _probe("status", _access(record), record.name) as answers:
            end_s = time.monotonic() + timeout_s
            deployments = answers.get(timeout_s, "Ray")
            controller = answers.get(end_s - time.monotonic(), "the controller")
    except PlatformError as error:
        return RunStatus(record, deployments, problem=str(error))
    return RunStatus(record, deployments, controller)


def ask_rebalance(record: RunRecord) -> DecisionStatus:
    """Have the controller place anew. Raises PlatformError with the reason if it does not."""
    if not record.address:
        raise EngineError("Ray is still being started; nothing is placed yet")
    with _probe("rebalance", _access(record), record.name) as answers:
        decision = answers.get(REBALANCE_TIMEOUT_S, "the controller")
    assert isinstance(decision, DecisionStatus)
    return decision


def drain_app(record: RunRecord, grace_s: float) -> int:
    """Refuse new requests, wait for open ones; how many are left. Raises PlatformError."""
    if not (record.address and record.is_ready):
        return 0
    with _probe("drain", _access(record), record.name, about=grace_s) as answers:
        left = answers.get(grace_s + ANSWER_TIMEOUT_S + CALL_TIMEOUT_S, "the controller")
    assert isinstance(left, int)
    return left


def delete_app(record: RunRecord) -> None:
    """Take the application off a joined cluster. Raises PlatformError if that cannot be done."""
    if record.address:
        with _probe("delete", _access(record), record.name) as answers:
            answers.get(DELETE_TIMEOUT_S, "Ray")


def deploy_app(config: DeploymentConfig, access: RayAccess, python: str) -> None:
    """Hand the application to Serve; returns before it is ready. Raises PlatformError.

    python: the interpreter that builds it, or what stands in for one.
    """
    with _probe("deploy", access, config.name, python=python, about=config) as answers:
        answers.get(DEPLOY_TIMEOUT_S, "Ray Serve")


def _access(record: RunRecord) -> RayAccess:
    return RayAccess(record.address, record.auth_mode)


class _Answers:
    """Reads what a probe answers, each with a time limit."""

    def __init__(self, stream: IO[bytes], errors: IO[bytes]) -> None:
        self._errors = errors
        self._queue: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def get(self, timeout_s: float, whom: str) -> Any:
        """The next answer. Raises the PlatformError that was answered, EngineError if none was."""
        try:
            found = self._queue.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            raise EngineError(f"{whom} did not answer within {timeout_s:.1f} s") from None
        if isinstance(found, PlatformError):
            raise found
        if isinstance(found, EOFError):
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise EngineError(f"{whom} could not be asked: {last[0] if last else 'no reason told'}")
        return found

    def _read(self, stream: IO[bytes]) -> None:
        try:
            while True:
                self._queue.put(pickle.load(stream))
        except (EOFError, pickle.UnpicklingError, ValueError):
            self._queue.put(EOFError())

    def join(self) -> None:
        """Wait for the thread, which ends with the probe."""
        self._thread.join()


@contextmanager
def _probe(
    what: str,
    access: RayAccess,
    app: str,
    *,
    python: str = sys.executable,
    about: object = None,  # what it reads
) -> Iterator[_Answers]:
    words = [what, access.address, access.auth_mode, app]
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as told:
        pickle.dump(about, told)
        told.seek(0)
        with subprocess.Popen(
            [python, "-m", "deploy.probe", *words],
            stdin=told,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process:
            assert process.stdout is not None
            answers = _Answers(process.stdout, errors)
            try:
                started = answers.get(IMPORT_TIMEOUT_S, "Ray's own code")
                assert started == STARTED
                yield answers
            finally:
                process.kill()
                answers.join()

"""What `up` does once nothing is left to refuse: start, serve, stop.

While it runs, the record of `deploy.records` is kept current for `status` and `down`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from deploy.backend import Backend
from deploy.first_token import base_url, example_curl
from deploy.preflight_checks import check_resources
from deploy.processes import TERMINATE_WAIT_S, descendants, end_processes, wait_gone
from deploy.progress import Progress
from deploy.records import Claim
from deploy.signals import Stopped, StopSignals
from router.errors import EngineError
from services.config import DeploymentConfig
from services.paths import RAY_LOGS

POLL_S = 1.0
LOOK_EVERY = 10  # polls between two looks at which processes there are, while serving
SHUTDOWN_WAIT_S = 15.0  # for an orderly end; requests that take longer are cut off
EXIT_WAIT_S = 3.0  # for processes to go by themselves after that
UNUSED_WAIT_S = 1.0  # to end before they are killed, if nobody was served yet
ROUNDS = 5  # while some are ended, others may be starting


@dataclass(frozen=True, slots=True)
class Session:
    """What every stage of an `up` needs."""

    backend: Backend
    progress: Progress
    claim: Claim
    signals: StopSignals
    sleep: Callable[[float], None] = time.sleep

    def pause(self) -> None:
        """Wait until it is time to look again. Raises Stopped."""
        self.sleep(POLL_S)
        self.signals.check()


def start(config: DeploymentConfig, session: Session) -> None:
    """Start Ray and the application; return when a first token was served."""
    backend, progress = session.backend, session.progress
    with progress.step("starting Ray"):
        try:
            access = backend.start_ray(config)
        except SystemExit as error:  # what Ray makes of SIGTERM while it starts
            raise Stopped(signal.SIGTERM) from error
        session.signals.install()
    session.claim.update(
        address=access.address, auth_mode=access.auth_mode, processes=descendants()
    )
    if config.ray.address is not None:  # a local Ray is started with what is asked for
        there = backend.resources()
        check_resources(config, cpus=there.get("CPU", 0.0), gpus=there.get("GPU", 0.0))
    with progress.step("deploying the application"):
        backend.deploy(config)
        session.signals.check()
        wait_until_ready(config, session)
    with progress.step("first token"):
        backend.first_token(config)
        session.signals.check()
    progress.say(f'ready: {base_url(config)}/v1 serves "{config.model.served_name}". Try:')
    progress.plain(f"\n{example_curl(config)}\n")


def wait_until_ready(config: DeploymentConfig, session: Session) -> None:
    """Print each new line of the application's progress until it is ready.

    Raises EngineError when nothing has changed for controller.startup_grace_s.
    """
    backend, progress = session.backend, session.progress
    grace_s = config.controller.startup_grace_s
    seen: list[str] = []
    changed_s = progress.elapsed_s
    while not backend.is_ready(config.name):
        lines = backend.app_progress(config.name)
        for line in lines:
            if line not in seen:
                progress.say(f"  {line}")
        if lines != seen:
            seen, changed_s = lines, progress.elapsed_s
            session.claim.update(processes=descendants())
        if progress.elapsed_s - changed_s > grace_s:
            raise EngineError(
                f"nothing has changed for {grace_s:g} s (controller.startup_grace_s); waiting "
                f"for: {'; '.join(seen) or 'an unknown cause'}. Look at the Serve logs under "
                f"{RAY_LOGS}/serve, or raise startup_grace_s for a slow disk."
            )
        session.pause()


def serve(session: Session) -> None:
    """Stay, because a local Ray lives as long as this process; ended by a signal."""
    session.claim.update(is_ready=True, processes=descendants())
    session.progress.say(
        "serving until it is stopped: Ctrl-C here, or python -m deploy down elsewhere"
    )
    while True:
        for _ in range(LOOK_EVERY):
            session.pause()
        session.claim.update(processes=descendants())


def stop(config: DeploymentConfig, session: Session) -> None:
    """Stop all that was started, and end what is left of it."""
    progress, is_serving = session.progress, session.claim.record.is_ready
    with progress.step("stopping"):
        if problem := shut_down(config, session.backend, is_serving):
            progress.say(problem)
        elif is_serving:
            wait_gone(descendants(), EXIT_WAIT_S)
        ended = end_descendants(TERMINATE_WAIT_S if is_serving else UNUSED_WAIT_S)
        if ended and is_serving:
            progress.say(f"ended {ended} processes that had not stopped by themselves")


def shut_down(config: DeploymentConfig, backend: Backend, is_serving: bool) -> str:
    """Stop in good order, if that is possible in time; returns what was in the way."""
    problems: list[str] = []

    def shut() -> None:
        try:
            backend.shutdown(config, drain=is_serving)
        except Exception as error:  # the rest of the stopping must not depend on this
            problems.append(f"the cluster could not be stopped in good order: {error!r}")

    # In a thread, which can be left behind: a half-dead Ray answers after minutes, or never.
    thread = threading.Thread(target=shut, name="shutdown", daemon=True)
    thread.start()
    thread.join(SHUTDOWN_WAIT_S)
    if thread.is_alive():
        return f"the cluster has not stopped within {SHUTDOWN_WAIT_S:g} s; ending its processes"
    return "; ".join(problems)


def end_now(session: Session, signum: int) -> NoReturn:
    """Stop without the main thread, which does not come back from a library."""
    session.progress.say("Ray does not come back; ending it by force")
    end_descendants()
    session.claim.release()
    os._exit(128 + signum)


def end_descendants(wait_s: float = UNUSED_WAIT_S) -> int:
    """End every process that this one has started; returns how many there were.

    wait_s: how long they may take before they are killed.
    """
    ended = 0
    for _ in range(ROUNDS):
        left = descendants()
        if not left:
            break
        ended += end_processes(left, wait_s)
    return ended

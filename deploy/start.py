"""What `up` does once nothing is left to refuse: start, serve, stop.

While it runs, the record of `deploy.records` is kept current for `status` and `down`.
"""

import threading
import time
from collections.abc import Callable

from deploy.backend import Backend
from deploy.first_token import base_url, example_curl
from deploy.preflight_checks import check_resources
from deploy.processes import descendants, end_processes, wait_gone
from deploy.progress import Progress
from deploy.records import Claim
from deploy.signals import raise_on_stop_signals
from router.errors import EngineError
from services.config import DeploymentConfig

POLL_S = 1.0
LOOK_EVERY = 10  # polls between two looks at which processes there are, while serving
SHUTDOWN_WAIT_S = 15.0  # for an orderly end; requests that take longer are cut off
EXIT_WAIT_S = 3.0  # for processes to go by themselves after that
ROUNDS = 5  # while some are ended, others may be starting


def start(
    config: DeploymentConfig,
    backend: Backend,
    progress: Progress,
    claim: Claim,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Start Ray and the application; return when a first token was served."""
    with progress.step("starting Ray"):
        access = backend.start_ray(config)
        raise_on_stop_signals()
    claim.update(address=access.address, auth_mode=access.auth_mode, processes=descendants())
    if config.ray.address is not None:  # a local Ray is started with what is asked for
        there = backend.resources()
        check_resources(config, cpus=there.get("CPU", 0.0), gpus=there.get("GPU", 0.0))
    with progress.step("deploying the application"):
        backend.deploy(config)
        wait_until_ready(config, backend, progress, claim, sleep)
    with progress.step("first token"):
        backend.first_token(config)
    progress.say(f'ready: {base_url(config)}/v1 serves "{config.model.served_name}". Try:')
    progress.plain(f"\n{example_curl(config)}\n")


def wait_until_ready(
    config: DeploymentConfig,
    backend: Backend,
    progress: Progress,
    claim: Claim,
    sleep: Callable[[float], None],
) -> None:
    """Print each new line of the application's progress until it is ready.

    Raises EngineError when nothing has changed for controller.startup_grace_s.
    """
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
            claim.update(processes=descendants())
        if progress.elapsed_s - changed_s > grace_s:
            raise EngineError(
                f"nothing has changed for {grace_s:g} s (controller.startup_grace_s); waiting "
                f"for: {'; '.join(seen) or 'an unknown cause'}. Look at the Serve logs under "
                "/tmp/ray/session_latest/logs/serve, or raise startup_grace_s for a slow disk."
            )
        sleep(POLL_S)


def serve(progress: Progress, claim: Claim, sleep: Callable[[float], None]) -> None:
    """Stay, because a local Ray lives as long as this process; ended by a signal."""
    claim.update(is_ready=True, processes=descendants())
    progress.say("serving until it is stopped: Ctrl-C here, or python -m deploy down elsewhere")
    while True:
        for _ in range(LOOK_EVERY):
            sleep(POLL_S)
        claim.update(processes=descendants())


def stop(config: DeploymentConfig, backend: Backend, progress: Progress) -> None:
    """Stop all that was started, and end what is left of it."""
    with progress.step("stopping"):
        problem = shut_down(config, backend)
        if problem:
            progress.say(problem)
        else:
            wait_gone(descendants(), EXIT_WAIT_S)
        if left := end_descendants():
            progress.say(f"ended {left} processes that had not stopped by themselves")


def shut_down(config: DeploymentConfig, backend: Backend) -> str:
    """Stop in good order, if that is possible in time; returns what was in the way."""
    problems: list[str] = []

    def shut() -> None:
        try:
            backend.shutdown(config)
        except Exception as error:  # the rest of the stopping must not depend on this
            problems.append(f"the cluster could not be stopped in good order: {error!r}")

    # In a thread, which can be left behind: a half-dead Ray answers after minutes, or never.
    thread = threading.Thread(target=shut, name="shutdown", daemon=True)
    thread.start()
    thread.join(SHUTDOWN_WAIT_S)
    if thread.is_alive():
        return f"the cluster has not stopped within {SHUTDOWN_WAIT_S:g} s; ending its processes"
    return "; ".join(problems)


def end_descendants() -> int:
    """End every process that this one has started; returns how many there were."""
    ended = 0
    for _ in range(ROUNDS):
        left = descendants()
        if not left:
            break
        ended += end_processes(left)
    return ended

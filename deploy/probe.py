"""A process of its own that joins a cluster, asks or changes one thing, and ends.

Joining a half-dead cluster takes Ray minutes in which it hears no signal, so it is done where it
can be killed; and building the application takes vLLM, which the command line's process is not to
keep. `deploy.ask` starts it; answers are pickled to standard output, one after the other.
"""

import os
import pickle
import sys
from typing import NoReturn

from router.errors import PlatformError
from services.cluster import controller_status, drain, rebalance
from services.ray_session import (
    RayAccess,
    connect,
    delete_app,
    deployment_states,
    prepare_access,
)

STARTED, DELETED, DEPLOYED = "started", "deleted", "deployed"


def main(what: str, address: str, auth_mode: str, app: str) -> None:
    """Answer with `STARTED`, then what was asked for, or the PlatformError that came instead."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print is no answer

    def answer(value: object) -> None:
        answers.write(pickle.dumps(value))
        answers.flush()

    access = RayAccess(address, auth_mode)
    prepare_access(access)
    import ray.serve  # noqa: F401  # takes seconds on a busy machine, which are no sign of trouble

    answer(STARTED)
    try:
        connect(access)
        if what == "delete":
            delete_app(app)
            answer(DELETED)
        elif what == "deploy":
            from services.app import deploy

            deploy(pickle.load(sys.stdin.buffer))
            answer(DEPLOYED)
        elif what == "rebalance":
            answer(rebalance(app))
        elif what == "drain":
            answer(drain(app, pickle.load(sys.stdin.buffer)))
        else:
            answer(deployment_states(app))
            answer(controller_status(app))
    except PlatformError as error:
        answer(error)


def run() -> NoReturn:
    """End at once afterwards: nothing was started that would have to be stopped."""
    code = 1
    try:
        main(*sys.argv[1:])
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    run()

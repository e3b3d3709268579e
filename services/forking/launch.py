"""Starts the fork server of a deployment, and says what takes the interpreter's place.

Only for a Ray that is started here and computes on CPUs: a cluster's hosts may hold one process
each, and a fork after CUDA has begun is useless.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from services.config import DeploymentConfig
from services.forking import client
from services.paths import run_dir

ROOT = Path(__file__).parents[2]
PYTHON = "python"
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
"""OpenMP's threads sleep while rows are away, but first spin for some 0.1 ms after a loop: the next
one mostly begins by then, and waking them takes as long (DECISIONS.md).
"""
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    **WAITING,  # read when the library is loaded, so the same for all forks
    "OPENBLAS_NUM_THREADS": "1",  # its threads would not be there in a fork
    "OMP_NUM_THREADS": "1",
}


def is_used(config: DeploymentConfig) -> bool:
    """Whether this deployment's processes are forked."""
    return config.ray.address is None and not config.attention.gpus and not config.pool.gpus


def python_for(config: DeploymentConfig) -> str:
    """The executable that runs Python command lines for this deployment."""
    return str(run_dir(config) / PYTHON) if is_used(config) else sys.executable


def start_fork_server(folder: Path) -> Path:
    """Let it import what takes long, beside whatever comes next; it ends with this process.

    folder: for its socket. Returns the executable to use in an interpreter's place.
    """
    address, python = folder / "fork-server", folder / PYTHON
    address.unlink(missing_ok=True)
    write_python(python, address)
    subprocess.Popen(
        [sys.executable, "-m", "services.forking.server", str(address)],
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    return python


def write_python(file: Path, address: Path) -> None:
    """An executable that takes an interpreter's words and has the server at `address` run them."""
    words = [sys.executable, "-IS", client.__file__, str(address), sys.executable]
    file.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    file.chmod(0o700)

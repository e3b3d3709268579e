"""One real application for all tests that talk to it: the demo model, its experts on two shards."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 420.0
NAME = "test-application"
MODEL = "demo-moe"


@dataclass(frozen=True)
class Application:
    """The running application."""

    url: str
    log: Path

    def status(self) -> dict[str, Any]:
        """What `python -m deploy status --json` says of it."""
        words = [sys.executable, "-m", "deploy", "status", "--name", NAME, "--json"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        [run] = json.loads(done.stdout)["runs"]
        return dict(run)


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """`python -m deploy up --demo`, as an operator would run it; stopped by Ctrl-C at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("application") / "up.log"
    words = [sys.executable, "-m", "deploy", "up", "--demo", "--port", str(port)]
    for setting in (f"name={NAME}", "pool.redundancy=2", "model.dtype=float32"):
        words += ["--set", setting]
    with open(log, "w") as sink:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        end_s = time.monotonic() + START_TIMEOUT_S
        while "ready: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end_s, log.read_text()
            time.sleep(0.5)
        yield Application(f"http://127.0.0.1:{port}", log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

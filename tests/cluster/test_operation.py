"""What an operator relies on while it serves: who can reach it, and that it runs once."""

import subprocess
import sys

import psutil
import pytest

from tests.cluster.conftest import NAME, ROOT, Application

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

LOOPBACK = ("127.", "::1", "::ffff:127.")


def test_nothing_listens_for_other_machines(application: Application) -> None:
    owner = psutil.Process(application.status()["pid"])
    listening = [
        f"{process.pid} {process.name()} {connection.laddr.ip}:{connection.laddr.port}"
        for process in (owner, *owner.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert [each for each in listening if not each.split()[-1].startswith(LOOPBACK)] == []


def test_status_of_another_process_is_complete_and_quick(application: Application) -> None:
    run = application.status()
    assert (run["name"], run["ready"], run["problem"]) == (NAME, True, "")
    assert {state["status"] for state in run["deployments"]} == {"HEALTHY"}
    assert run["controller"]["complete"]


def test_second_up_of_the_same_name_is_refused(application: Application) -> None:
    words = [sys.executable, "-m", "deploy", "up", "--demo", "--set", f"name={NAME}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    pid = application.status()["pid"]
    assert f"a deployment named {NAME} already runs: process {pid}" in done.stderr

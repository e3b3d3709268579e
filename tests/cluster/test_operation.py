"""What an operator relies on while it serves: who can reach it, and that it runs once."""

import re
import subprocess
import sys
from collections import Counter, defaultdict

import psutil
import pytest

from tests.cluster.conftest import NAME, ROOT, Application

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

LOOPBACK = ("127.", "::1", "::ffff:127.")


ROW = re.compile(r"^\| `([^`]+)` \| (\d+) \|", re.MULTILINE)
"""Of the README's table of what listens."""


def listening(owner: psutil.Process) -> list[tuple[psutil.Process, str, int]]:
    """Process, address and port of every socket that it or a descendant takes connections on."""
    return [
        (process, connection.laddr.ip, connection.laddr.port)
        for process in (owner, *owner.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def test_nothing_listens_for_other_machines(application: Application) -> None:
    owner = psutil.Process(application.status()["pid"])
    found = [f"{process} {ip}:{port}" for process, ip, port in listening(owner)]
    assert len(found) > 5
    assert [each for each in found if not each.split()[-1].startswith(LOOPBACK)] == []


def test_what_listens_is_what_the_readme_says(application: Application) -> None:
    text = (ROOT / "README.md").read_text().split("\n## What listens\n")[1].split("\n## ")[0]
    most = {name: int(count) for name, count in ROW.findall(text)}
    assert len(most) > 10
    owner = psutil.Process(application.status()["pid"])
    sockets: Counter[tuple[str, int]] = Counter()
    ports: dict[str, set[int]] = defaultdict(set)
    for process, _, port in listening(owner):
        words = " ".join(process.cmdline()[:4])
        [name] = [name for name in most if name in words] or [words]
        sockets[name, process.pid] += 1
        ports[name].add(port)
    unknown = [at for at, count in sockets.items() if count > most.get(at[0], 0)]
    assert unknown == [], "they, or so many of them, are not in the README"
    assert most.keys() - ports.keys() <= {"ray::IDLE"}, "in the README, and not there"
    assert int(application.url.rpartition(":")[2]) in ports["ray::ProxyActor"]


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

"""Three hosts with addresses of their own, real tcp between them, cables that are pulled.

The hosts are network namespaces of this machine (`tests.support.hosts`); where it cannot have
them, all of this is skipped.
"""

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.bench.load import Stream, closed_loop
from tests.support.checkpoints import make_checkpoint
from tests.support.host_cluster import ROOT, HostCluster
from tests.support.hosts import Host, Network, why_not

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.extended,
    pytest.mark.timeout(900),
]

CUT_S = 8.0  # longer than `controller.lease_s`, shorter than Ray takes to give a host up
PROMPTS = [f"{n} sheep sleep on the river" for n in range(6)]
GREETING = bytes([0xFF, *[0] * 8, 0x7F, 3, 0]) + b"CURVE".ljust(52, b"\0")  # ZeroMQ's, no key yet


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """Redundancy 2 on two hosts of a shard each; attention and API on a third."""
    if problem := why_not():
        pytest.skip(problem)
    model = make_checkpoint("mixtral", tmp_path_factory.mktemp("model") / "mixtral")
    environment = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
    with tempfile.TemporaryDirectory(prefix="em", ignore_cleanup_errors=True) as folder:
        network = Network(Path(folder), environment)
        try:
            made = HostCluster(network, model)
            for _ in range(3):
                made.add()
            made.serve("pool.redundancy=2", "pool.shards=2")
            yield made
        finally:
            network.remove()


async def load(cluster: HostCluster, seconds: float) -> list[Stream]:
    return await closed_loop(
        cluster.url,
        model="mixtral",
        prompts=PROMPTS,
        clients=3,
        max_tokens=48,
        seconds=seconds,
        key=cluster.key,
    )


def ask(cluster: HostCluster, seconds: float) -> list[Stream]:
    """Three clients, over and over."""
    return asyncio.run(load(cluster, seconds))


def ask_meanwhile(cluster: HostCluster, seconds: float, *blows: tuple[float, Any]) -> list[Stream]:
    """The same, and at some moments something is done to it."""

    async def strike() -> None:
        began_s = time.monotonic()
        for at_s, blow in blows:
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            await asyncio.to_thread(blow)

    async def both() -> list[Stream]:
        streams, _ = await asyncio.gather(load(cluster, seconds), strike())
        return streams

    return asyncio.run(both())


def texts(streams: list[Stream]) -> dict[str, set[str]]:
    return {prompt: {s.text for s in streams if s.prompt == prompt} for prompt in PROMPTS}


def is_whole(known: Mapping[str, Any]) -> bool:
    alive = [shard for shard in known["shards"] if shard["state"] != "suspected"]
    return bool(known["complete"]) and known["redundancy"] == 2 and len(alive) == 2


def connections(host: Host) -> list[tuple[str, int]]:
    """(address, port) of established tcp connections to other hosts."""
    words = ["ip", "netns", "exec", host.name, "ss", "-Htn", "state", "established"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    peers = [line.split()[-1].rpartition(":") for line in lines]
    return [(address.removeprefix("[::ffff:").rstrip("]"), int(port)) for address, _, port in peers]


def mechanism(address: str, port: int) -> bytes:
    """What a ZeroMQ socket there asks for; empty if there is none, or nobody listens."""
    got = b""
    try:
        with socket.create_connection((address, port), 3) as probe:
            probe.settimeout(2)
            probe.sendall(GREETING)
            while len(got) < len(GREETING) and (more := probe.recv(64)):
                got += more
    except OSError:  # what came before counts
        pass
    return got[12:32].rstrip(b"\0") if got[:1] == b"\xff" else b""


def test_shards_are_on_different_hosts_and_rows_go_encrypted(cluster: HostCluster) -> None:
    known = cluster.wait_for_pool(is_whole, 60)
    assert len({shard["host"] for shard in known["shards"]}) == 2
    body = {"model": "mixtral", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"Authorization": f"Bearer {cluster.key}"}
    chat = f"{cluster.url}/v1/chat/completions"
    answer = httpx.post(chat, json=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 8
    rows = sum(shard["rows"] for shard in cluster.wait_for_pool(is_whole, 60)["shards"])
    assert rows > 0
    for host in cluster.hosts[1:3]:
        ports = [port for address, port in connections(cluster.head) if address == host.address]
        found = [mechanism(host.address, port) for port in ports]
        assert found.count(b"CURVE") == 1, list(zip(ports, found, strict=True))


def test_a_host_that_is_cut_off_for_a_while_costs_no_request(cluster: HostCluster) -> None:
    calm = ask(cluster, 8)
    assert [s.error for s in calm if s.failed] == []
    victim = cluster.hosts[1]
    streams = ask_meanwhile(
        cluster,
        CUT_S + 20,
        (3.0, lambda: victim.set_link(is_up=False)),
        (3.0 + CUT_S, lambda: victim.set_link(is_up=True)),
    )
    stall_s = max(max(s.longest_gap_s, s.ttft_s) for s in streams)  # before the first token too
    print(f"{len(streams)} requests, longest stall {stall_s:.2f} s")
    assert [s.error for s in streams if s.failed] == []
    assert len(streams) >= 6
    assert all(len(said) == 1 for said in texts(calm + streams).values())
    assert stall_s > 1.5, "nobody noticed: was the cable pulled?"
    cluster.wait_for_pool(is_whole, 60)


def test_a_host_that_dies_is_replaced_by_one_that_joins(cluster: HostCluster) -> None:
    dead = cluster.hosts[2]
    before = {shard["shard_id"] for shard in cluster.wait_for_pool(is_whole, 60)["shards"]}
    streams = ask_meanwhile(cluster, 15, (3.0, dead.end))
    assert [s.error for s in streams if s.failed] == []
    joined = cluster.add()
    known = cluster.wait_for_pool(is_whole, 240)
    [new] = [shard for shard in known["shards"] if shard["shard_id"] not in before]
    assert len({shard["host"] for shard in known["shards"]}) == 2
    assert int(new["shard_id"].split("-")[0]) in joined.processes()
    assert [s.error for s in ask(cluster, 5) if s.failed] == []

    def has_worked(now: Mapping[str, Any]) -> bool:
        return any(s["shard_id"] == new["shard_id"] and s["rows"] > 0 for s in now["shards"])

    cluster.wait_for_pool(has_worked, 30)


def test_the_doctor_names_the_host_without_the_checkpoint(cluster: HostCluster) -> None:
    healthy = cluster.doctor()
    assert healthy["healthy"], healthy
    looked_at = [f["host"].split()[0] for f in healthy["findings"] if f["what"] == "clock"]
    assert set(looked_at) >= {cluster.hosts[n].address for n in (0, 1, 3)}
    bare = cluster.add(hides=cluster.model)

    def is_told() -> bool:
        told = cluster.doctor()
        bad = [f for f in told["findings"] if f["level"] == "FAILURE"]
        return [(f["host"].split()[0], f["what"]) for f in bad] == [(bare.address, "checkpoint")]

    cluster.wait(is_told, 90)


def test_nothing_of_it_is_left(cluster: HostCluster) -> None:
    names = [host.name for host in cluster.hosts]
    cluster.network.remove()
    there = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not any(name in there for name in names)
    assert not os.path.exists(f"/sys/class/net/{cluster.network.bridge}")

"""A real application on several hosts of `tests.support.hosts`: Ray, `up` and status there."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.keys import add_entry
from services.gateway.keys import digest_of, make_key
from tests.support.hosts import Host, Network

ROOT = Path(__file__).parents[2]
NAME = "test-hosts"
RAY_PORT = 6379
START_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 90.0
SETTINGS = (
    f"name={NAME}",
    "gateway.host=0.0.0.0",
    "attention.resources={attention: 1}",
    "attention.kv_cache_gib=0.25",
    "pool.resources={experts: 1}",
    "pool.max_shards_per_host=1",
    "model.dtype=float32",
)


@dataclass
class HostCluster:
    """The first host has Ray's head, attention and the API; the others have a shard each."""

    network: Network
    model: Path
    hosts: list[Host] = field(default_factory=list)
    up: "subprocess.Popen[bytes] | None" = None
    key: str = field(default_factory=make_key)  # of the API, which other hosts can reach

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def url(self) -> str:
        return f"http://{self.head.address}:8000"

    def log(self, name: str) -> str:
        """What was printed so far."""
        return (self.network.folder / f"{name}.log").read_text()

    def _start(self, host: Host, name: str, *words: str) -> "subprocess.Popen[bytes]":
        with open(self.network.folder / f"{name}.log", "w") as sink:
            return host.start([sys.executable, "-m", *words], sink)

    def add(self, hides: Path | None = None) -> Host:
        """One more host, with Ray on it. hides: a folder that it does not have."""
        host = self.network.add()
        host.hides = hides
        self.hosts.append(host)
        is_head = host is self.head
        role = "attention" if is_head else "experts"
        joins = [f"--address={self.head.address}:{RAY_PORT}"]
        heads = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
        self._start(
            host,
            f"ray-{len(self.hosts)}",
            *("ray.scripts.scripts", "start", "--block", "--num-cpus=2"),
            f"--node-ip-address={host.address}",
            f"--temp-dir={host.folder}/ray",
            f'--resources={{"{role}": 1}}',
            *(heads if is_head else joins),
        )
        if is_head:
            self.wait(lambda: "Ray runtime started" in self.log("ray-1"), START_TIMEOUT_S)
        return host

    def serve(self, *settings: str) -> None:
        """`up` on the head; returns when it serves."""
        keys = self.network.folder / "keys.yaml"
        add_entry(keys, {"name": "test", "sha256": digest_of(self.key), "scopes": ["use"]})
        words = ["tests.support.up_as", "known", "up", "--model", str(self.model)]
        words += ["--address", f"{self.head.address}:{RAY_PORT}"]
        for setting in (*SETTINGS, f"gateway.keys_file={keys}", *settings):
            words += ["--set", setting]
        up = self.up = self._start(self.head, "up", *words)

        def is_ready() -> bool:
            assert up.poll() is None, self.log("up")
            return "ready: " in self.log("up")

        self.wait(is_ready, START_TIMEOUT_S)

    def doctor(self) -> dict[str, Any]:
        """What `python -m deploy doctor --address` says on the head."""
        address = f"{self.head.address}:{RAY_PORT}"
        words = ["doctor", "--json", "--address", address, "--model", str(self.model)]
        found: dict[str, Any] = json.loads(self._answer(*words))
        return found

    def controller(self) -> dict[str, Any] | None:
        """What the controller says of itself; None if it did not answer in time."""
        text = self._answer("status", "--json", "--name", NAME)
        found: dict[str, Any] | None = json.loads(text)["runs"][0]["controller"]
        return found

    def _answer(self, *words: str) -> str:
        """What a command of `python -m deploy` prints on the head."""
        with tempfile.TemporaryFile("w+") as sink:
            command = [sys.executable, "-m", "deploy", *words]
            self.head.start(command, sink, subprocess.DEVNULL).wait(ANSWER_TIMEOUT_S)
            sink.seek(0)
            return sink.read()

    def wait_for_pool(
        self, is_so: Callable[[Mapping[str, Any]], bool], timeout_s: float
    ) -> dict[str, Any]:
        """The controller's account when it is as wanted."""
        seen: list[dict[str, Any]] = []

        def look() -> bool:
            now = self.controller()
            seen.extend([] if now is None else [now])
            return now is not None and is_so(now)

        try:
            self.wait(look, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"last seen: {seen[-1:]}") from error
        return seen[-1]

    def wait(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < end_s, f"not so within {timeout_s:.0f} s"
            time.sleep(0.3)

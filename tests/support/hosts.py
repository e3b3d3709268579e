"""Hosts of a small network on this machine: network namespaces on a bridge, each with an address.

Each host also has its own folder for temporary files, so that nothing but the checkpoint is shared;
a link can be taken down and up again. Needs root and iproute2 (`why_not` says what is missing).
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

NETWORK = "10.213.71"  # a /24 that only the bridge knows
GATEWAY = f"{NETWORK}.254"
END_WAIT_S = 10.0


def why_not() -> str:
    """Why this machine cannot have them; empty if it can."""
    if shutil.which("ip") is None:
        return "no command `ip`: install iproute2"
    probe = f"em{os.getpid()}x"
    made = _ip("netns", "add", probe, check=False)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


@dataclass
class Host:
    """One of them. `name` is the namespace's, `link` that of its cable's end at the bridge."""

    name: str
    link: str
    address: str
    folder: Path  # for temporary files; short, since Unix sockets lie in it
    environment: Mapping[str, str]
    hides: Path | None = None  # a folder that is empty for its processes
    started: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(
        self, words: Sequence[str], sink: TextIO, errors: int = subprocess.STDOUT
    ) -> "subprocess.Popen[bytes]":
        """Run a command there, in a process group of its own; what it prints goes into `sink`."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *self._wrapped(words)],
            env={**os.environ, **self.environment, "TMPDIR": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=errors,
            process_group=0,
        )
        self.started.append(process)
        return process

    def _wrapped(self, words: Sequence[str]) -> Sequence[str]:
        if self.hides is None:
            return words
        mount = 'mount -t tmpfs none "$0" && exec "$@"'  # seen by this process and its children
        return ["sh", "-c", mount, str(self.hides), *words]

    def set_link(self, *, is_up: bool) -> None:
        """Plug the cable in, or pull it."""
        _ip("link", "set", self.link, "up" if is_up else "down")

    def processes(self) -> list[int]:
        """Whatever runs in it."""
        return [int(pid) for pid in _ip("netns", "pids", self.name, check=False).stdout.split()]

    def end(self) -> None:
        """Kill everything in it at once, as if its power had gone."""
        end_s = time.monotonic() + END_WAIT_S
        while (left := self.processes()) and time.monotonic() < end_s:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        for process in self.started:
            process.wait(END_WAIT_S)


@dataclass
class Network:
    """A bridge with hosts; this process reaches them from `GATEWAY`."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: list[Host] = field(default_factory=list)
    bridge: str = field(default_factory=lambda: f"em{os.getpid()}b")

    def __post_init__(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("address", "add", f"{GATEWAY}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def add(self) -> Host:
        """One more host, plugged in."""
        number = len(self.hosts) + 1
        name, link, address = (
            f"em{os.getpid()}h{number}",
            f"em{os.getpid()}l{number}",
            f"{NETWORK}.{number}",
        )
        folder = self.folder / f"h{number}"
        folder.mkdir()
        host = Host(name, link, address, folder, self.environment)
        _ip("netns", "add", name)
        self.hosts.append(host)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self.bridge, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", GATEWAY),
        ):
            _ip("-n", name, *words)
        return host

    def remove(self) -> None:
        """End what runs on the hosts, and take everything away."""
        for host in self.hosts:
            host.end()
            _ip("netns", "del", host.name, check=False)
        _ip("link", "del", self.bridge, check=False)


def _ip(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done

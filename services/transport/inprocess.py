"""Rows handed over inside one process: no socket, no copy. Tests and tools run on it.

A shard "dies" by closing its port: the link then reports it lost, as a socket would.
"""

import queue
import threading
import time
from collections.abc import Sequence
from typing import TypeVar

from router.errors import PeerLost
from router.table import ShardAddress, ShardId
from services.transport.base import (
    Answered,
    Delivery,
    Event,
    RowsAnswer,
    RowsRefusal,
    RowsRequest,
    ShardLost,
)

T = TypeVar("T")


class Hub:
    """Where the ports and links of one process meet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ports: dict[ShardId, InProcessPort] = {}
        self.links: dict[bytes, InProcessLink] = {}

    def port(self, shard_id: ShardId) -> "InProcessPort":
        """Open a shard's port."""
        port = InProcessPort(self, ShardAddress(shard_id, host="here", ipc_endpoint="inprocess"))
        with self._lock:
            self.ports[shard_id] = port
        return port

    def link(self) -> "InProcessLink":
        """Make an attention replica's link."""
        with self._lock:
            link = InProcessLink(self, peer=str(len(self.links)).encode())
            self.links[link.peer] = link
        return link

    def close(self, shard_id: ShardId) -> None:
        """Take a port away and tell every link."""
        with self._lock:
            self.ports.pop(shard_id, None)
            links = list(self.links.values())
        for link in links:
            link.events.put(ShardLost(shard_id, "port closed"))


class InProcessPort:
    """A shard's end."""

    def __init__(self, hub: Hub, address: ShardAddress) -> None:
        self._hub = hub
        self._address = address
        self.inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()

    @property
    def address(self) -> ShardAddress:
        return self._address

    def direct(self) -> None:
        return None

    def receive(self, timeout_s: float) -> list[Delivery]:
        return [delivery for delivery in _drain(self.inbox, timeout_s) if delivery is not None]

    def wake(self) -> None:
        self.inbox.put(None)

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        link = self._hub.links.get(delivery.peer)
        if link is not None:
            link.events.put(Answered(self._address.shard_id, answer))

    def close(self) -> None:
        self._hub.close(self._address.shard_id)


class InProcessLink:
    """An attention replica's end."""

    def __init__(self, hub: Hub, peer: bytes) -> None:
        self._hub = hub
        self.peer = peer
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._connected: frozenset[ShardId] = frozenset()

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        self._connected = frozenset(a.shard_id for a in shards)

    def direct(self, shards: Sequence[ShardAddress]) -> None:
        return None

    def send(self, shard_id: ShardId, request: RowsRequest, sent: int = 0) -> None:
        port = self._hub.ports.get(shard_id)
        if port is None or shard_id not in self._connected:
            raise PeerLost(f"shard {shard_id} has no open port in this process")
        port.inbox.put(Delivery(self.peer, request, time.monotonic()))

    def receive(self, timeout_s: float) -> list[Event]:
        return _drain(self.events, timeout_s)

    def close(self) -> None:
        self._connected = frozenset()


def _drain(waiting: "queue.SimpleQueue[T]", timeout_s: float) -> list[T]:
    items: list[T] = []
    try:
        items.append(waiting.get(timeout=timeout_s) if timeout_s > 0 else waiting.get_nowait())
        while True:
            items.append(waiting.get_nowait())
    except queue.Empty:
        return items

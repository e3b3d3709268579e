"""A link and a port over real sockets: Unix sockets on one host, ZeroMQ between hosts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from router.errors import PeerLost
from router.table import ShardAddress, ShardId
from services.transport.base import Delivery, Event, RowsAnswer, RowsRefusal, RowsRequest
from services.transport.direct_link import DirectLink
from services.transport.direct_port import DirectPort
from services.transport.keys import DataPlaneKeys
from services.transport.unix import UnixLink, UnixPort
from services.transport.zeromq import ZmqLink, ZmqPort

NEAR, FAR = b"n", b"f"


class SocketLink:
    """Attention's connections to the shards of the table."""

    def __init__(self, *, host: str, keys: DataPlaneKeys | None = None) -> None:
        """host: this replica's Ray node; shards there are reached by Unix sockets."""
        self._host = host
        self._near, self._far = UnixLink(), ZmqLink(keys)
        self._links: dict[ShardId, UnixLink | ZmqLink] = {}
        self._both = _Waiter()

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        near = [a for a in shards if a.ipc_endpoint and a.host == self._host]
        far = [a for a in shards if a not in near]
        for address in far:
            if not address.tcp_endpoint:
                raise PeerLost(
                    f"shard {address.shard_id} on host {address.host} offers no endpoint for host "
                    f"{self._host}; set transport.mode to auto or tcp"
                )
        self._near.connect(near)
        self._far.connect(far)
        self._links = {a.shard_id: self._near for a in near}
        self._links |= {a.shard_id: self._far for a in far}

    def direct(self, shards: Sequence[ShardAddress]) -> DirectLink | None:
        return None if self._far.files else self._near.direct(shards)

    def send(self, shard_id: ShardId, request: RowsRequest, sent: int = 0) -> None:
        if sent:
            self._near.send(shard_id, request, sent)
            return
        link = self._links.get(shard_id)
        if link is None:
            raise PeerLost(f"shard {shard_id} is not connected")
        link.send(shard_id, request)

    def receive(self, timeout_s: float) -> list[Event]:
        if not self._far.files:
            return self._near.receive(timeout_s)
        if not self._near.files:
            return self._near.receive(0) or self._far.receive(timeout_s)
        self._both.wait((*self._near.files, *self._far.files), timeout_s)
        return self._near.receive(0) + self._far.receive(0)

    def close(self) -> None:
        self._near.close()
        self._far.close()


class SocketPort:
    """A shard's sockets."""

    def __init__(
        self,
        shard_id: ShardId,
        *,
        host: str,
        run_dir: Path,
        tcp_host: str = "",
        keys: DataPlaneKeys | None = None,
    ) -> None:
        """Listen below `run_dir`, and on `tcp_host` with `keys` if that is given."""
        self._near = UnixPort(shard_id[-24:], run_dir)
        self._far = ZmqPort(tcp_host, keys) if tcp_host else None
        tcp = self._far.endpoint if self._far else ""
        self._address = ShardAddress(shard_id, host, self._near.endpoint, tcp)
        self._both = _Waiter()

    @property
    def address(self) -> ShardAddress:
        return self._address

    def direct(self) -> DirectPort | None:
        return self._near.direct() if self._far is None else None

    def receive(self, timeout_s: float) -> list[Delivery]:
        if self._far is None:
            return self._near.receive(timeout_s)
        self._both.wait((*self._near.files, *self._far.files), timeout_s)
        near = [replace(d, peer=NEAR + d.peer) for d in self._near.receive(0)]
        return near + [replace(d, peer=FAR + d.peer) for d in self._far.receive()]

    def wake(self) -> None:
        self._near.wake()

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        if self._far is None:
            self._near.answer(delivery, answer)
            return
        port = self._near if delivery.peer.startswith(NEAR) else self._far
        port.answer(replace(delivery, peer=delivery.peer[1:]), answer)

    def close(self) -> None:
        self._near.close()
        if self._far is not None:
            self._far.close()


class _Waiter:
    """Waits for sockets of both kinds."""

    def __init__(self) -> None:
        self._files: tuple[Any, ...] = ()
        self._poller = zmq.Poller()

    def wait(self, files: tuple[Any, ...], timeout_s: float) -> None:
        """Until one of them can be read, at most `timeout_s`."""
        if files != self._files:
            self._files, self._poller = files, zmq.Poller()
            for file in files:
                self._poller.register(file, zmq.POLLIN)
        self._poller.poll(max(0, round(timeout_s * 1000)))

"""Rows over ZeroMQ: ipc between processes of one host, tcp with CURVE between hosts.

Attention holds one DEALER per shard, with a monitor that says at once when the peer is gone; a
shard binds one ROUTER per endpoint. ipc sockets lie in a folder that only this user may enter;
on tcp both sides prove a key of this deployment.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import zmq
import zmq.auth.thread
from zmq.utils.monitor import recv_monitor_message

from router.errors import PeerLost, WireFormatError
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
from services.transport.keys import DataPlaneKeys
from services.transport.wire import decode, encode

QUEUE_MESSAGES = 1000  # a send beyond this many unsent messages counts as a lost peer
GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
WATCHED = GONE | REFUSED


class ZmqLink:
    """Attention's connections to the shards of the table."""

    def __init__(self, *, host: str, keys: DataPlaneKeys | None = None) -> None:
        """host: this replica's Ray node; shards there are reached by ipc, others by tcp."""
        self._host = host
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._poller = zmq.Poller()
        self._sockets: dict[ShardId, zmq.Socket[bytes]] = {}
        self._monitors: dict[ShardId, zmq.Socket[bytes]] = {}
        self._owners: dict[zmq.Socket[bytes], ShardId] = {}

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        wanted = {a.shard_id: a for a in shards}
        for shard_id in [s for s in self._sockets if s not in wanted]:
            self._disconnect(shard_id)
        for shard_id, address in wanted.items():
            if shard_id not in self._sockets:
                self._open(address)

    def _open(self, address: ShardAddress) -> None:
        endpoint = address.tcp_endpoint
        if address.ipc_endpoint and address.host == self._host:
            endpoint = address.ipc_endpoint
        if not endpoint:
            raise PeerLost(
                f"shard {address.shard_id} on host {address.host} offers no endpoint for host "
                f"{self._host}; set transport.mode to auto or tcp"
            )
        dealer = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = QUEUE_MESSAGES
        if endpoint.startswith("tcp"):
            _prove(dealer, self._keys, endpoint)
        monitor = dealer.get_monitor_socket(WATCHED)
        dealer.connect(endpoint)
        for known, own in ((self._sockets, dealer), (self._monitors, monitor)):
            known[address.shard_id] = own
            self._owners[own] = address.shard_id
            self._poller.register(own, zmq.POLLIN)

    def send(self, shard_id: ShardId, request: RowsRequest) -> None:
        dealer = self._sockets.get(shard_id)
        if dealer is None:
            raise PeerLost(f"shard {shard_id} is not connected")
        try:
            dealer.send_multipart(encode(request), flags=zmq.DONTWAIT, copy=False)
        except zmq.Again as error:
            raise PeerLost(
                f"shard {shard_id} has {QUEUE_MESSAGES} unsent messages; it does not read"
            ) from error

    def receive(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        # answers first: one that arrived before its shard died is a good answer
        for own in sorted(ready, key=lambda s: s not in self._sockets.values()):
            shard_id = self._owners.get(own)
            if shard_id is None:
                continue
            answers = own is self._sockets.get(shard_id)
            events += (self._answers if answers else self._verdicts)(shard_id, own)
        return events

    def _answers(self, shard_id: ShardId, dealer: "zmq.Socket[bytes]") -> list[Event]:
        events: list[Event] = []
        while True:
            try:
                frames = dealer.recv_multipart(flags=zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return events
            try:
                message = decode([frame.buffer for frame in frames])
                if isinstance(message, RowsRequest):
                    raise WireFormatError("a shard sent a request")
                events.append(Answered(shard_id, message))
            except WireFormatError as error:
                events.append(ShardLost(shard_id, str(error)))

    def _verdicts(self, shard_id: ShardId, monitor: "zmq.Socket[bytes]") -> list[Event]:
        seen = 0
        while monitor.poll(0):
            seen |= recv_monitor_message(monitor)["event"]
        if not seen:
            return []
        reason = "it refused our key" if seen & REFUSED else "connection closed"
        self._disconnect(shard_id)
        return [ShardLost(shard_id, reason)]

    def _disconnect(self, shard_id: ShardId) -> None:
        dealer, monitor = self._sockets.pop(shard_id), self._monitors.pop(shard_id)
        dealer.disable_monitor()
        for own in (dealer, monitor):
            self._poller.unregister(own)
            del self._owners[own]
            own.close(0)

    def close(self) -> None:
        for shard_id in list(self._sockets):
            self._disconnect(shard_id)


class ZmqPort:
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
        """Listen on ipc below `run_dir`, and on `tcp_host` with `keys` if that is given."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._poller = zmq.Poller()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._authenticator: zmq.auth.thread.ThreadAuthenticator | None = None
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = run_dir / f"{shard_id[-24:]}.sock"
        ipc = self._bind(f"ipc://{self._path}")
        os.chmod(self._path, 0o600)
        tcp = ""
        if tcp_host:
            self._start_authenticator(keys)
            tcp = self._bind(f"tcp://{tcp_host}:*", keys)
        self._address = ShardAddress(shard_id, host, ipc, tcp)

    def _start_authenticator(self, keys: DataPlaneKeys | None) -> None:
        if keys is None:
            raise PeerLost("a shard was asked to listen on tcp without keys")
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._authenticator.start()
        allowed = keys.attention.public.encode()
        self._authenticator.configure_curve_callback("*", _OnlyKey(allowed))

    def _bind(self, endpoint: str, keys: DataPlaneKeys | None = None) -> str:
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.sndhwm = router.rcvhwm = QUEUE_MESSAGES
        if keys is not None:
            router.curve_server = True
            router.curve_secretkey = keys.shard.secret.encode()
            router.curve_publickey = keys.shard.public.encode()
        router.bind(endpoint)
        self._sockets.append(router)
        self._poller.register(router, zmq.POLLIN)
        return cast(bytes, router.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")

    @property
    def address(self) -> ShardAddress:
        return self._address

    def receive(self, timeout_s: float) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for router, _ in self._poller.poll(max(0, round(timeout_s * 1000))):
            index = self._sockets.index(router)
            while True:
                try:
                    peer, *frames = router.recv_multipart(flags=zmq.DONTWAIT, copy=False)
                except zmq.Again:
                    break
                mark = bytes([index]) + peer.bytes
                try:
                    message = decode([frame.buffer for frame in frames])
                except WireFormatError as error:
                    self._reply(mark, RowsRefusal(0, str(error)))
                    continue
                if isinstance(message, RowsRequest):
                    deliveries.append(Delivery(mark, message, time.monotonic()))
        return deliveries

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        self._reply(delivery.peer, answer)

    def _reply(self, mark: bytes, answer: RowsAnswer | RowsRefusal) -> None:
        router = self._sockets[mark[0]]
        # a peer that does not read loses its answer; its deadline sends the rows elsewhere
        with suppress(zmq.Again):
            router.send_multipart([mark[1:], *encode(answer)], flags=zmq.DONTWAIT, copy=False)

    def close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        for router in self._sockets:
            router.close(0)
        self._path.unlink(missing_ok=True)


class _OnlyKey:
    """Accepts the attention key of this deployment and nothing else."""

    def __init__(self, allowed: bytes) -> None:
        self._allowed = allowed

    def callback(self, _domain: str, key: bytes) -> bool:
        return key == self._allowed


def _prove(dealer: "zmq.Socket[bytes]", keys: DataPlaneKeys | None, endpoint: str) -> None:
    if keys is None:
        raise PeerLost(f"{endpoint} needs this deployment's keys and there are none")
    dealer.curve_serverkey = keys.shard.public.encode()
    dealer.curve_publickey = keys.attention.public.encode()
    dealer.curve_secretkey = keys.attention.secret.encode()

"""Rows over ZeroMQ between hosts: tcp with CURVE, both sides prove a key of this deployment.

Attention holds one DEALER per shard, with a monitor that says at once when the peer is gone; a
shard binds one ROUTER.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
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
    reconnect,
)
from services.transport.keys import DataPlaneKeys, OnlyKey, prove_to
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
    """Attention's connections to the shards of other hosts."""

    def __init__(self, keys: DataPlaneKeys | None = None) -> None:
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._poller = zmq.Poller()
        self._sockets: dict[ShardId, zmq.Socket[bytes]] = {}
        self._monitors: dict[ShardId, zmq.Socket[bytes]] = {}
        self._owners: dict[zmq.Socket[bytes], ShardId] = {}

    @property
    def files(self) -> tuple["zmq.Socket[bytes]", ...]:
        """What can be waited for."""
        return tuple(self._owners)

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        reconnect(self._sockets, shards, self._open, self._disconnect)

    def _open(self, address: ShardAddress) -> None:
        dealer = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.sndhwm = dealer.rcvhwm = QUEUE_MESSAGES
        _prove(dealer, self._keys, address.tcp_endpoint)
        monitor = dealer.get_monitor_socket(WATCHED)
        dealer.connect(address.tcp_endpoint)
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
                events.append(ShardLost(shard_id, str(error), is_wrong=True))

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
    """A shard's socket for other hosts."""

    def __init__(self, tcp_host: str, keys: DataPlaneKeys | None) -> None:
        """Listen on a free port of `tcp_host`. Raises PeerLost without keys."""
        if keys is None:
            raise PeerLost("a shard was asked to listen on tcp without keys")
        # its own: the authenticator has a fixed address in it, which is free again only some time
        # after a port has closed
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._authenticator.start()
        allowed = keys.attention.public.encode()
        self._authenticator.configure_curve_callback("*", OnlyKey(allowed))
        router = self._router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.sndhwm = router.rcvhwm = QUEUE_MESSAGES
        router.curve_server = True
        router.curve_secretkey = keys.shard.secret.encode()
        router.curve_publickey = keys.shard.public.encode()
        router.bind(f"tcp://{tcp_host}:*")

    @property
    def endpoint(self) -> str:
        """The address that it has got."""
        return cast(bytes, self._router.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")

    @property
    def files(self) -> tuple["zmq.Socket[bytes]", ...]:
        """What can be waited for."""
        return (self._router,)

    def receive(self) -> list[Delivery]:
        """What has come in; waits for nothing."""
        deliveries: list[Delivery] = []
        while True:
            try:
                peer, *frames = self._router.recv_multipart(flags=zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return deliveries
            try:
                message = decode([frame.buffer for frame in frames])
            except WireFormatError as error:
                self._reply(peer.bytes, RowsRefusal(0, str(error)))
                continue
            if isinstance(message, RowsRequest):
                deliveries.append(Delivery(peer.bytes, message, time.monotonic()))

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        """Send back without waiting."""
        self._reply(delivery.peer, answer)

    def _reply(self, peer: bytes, answer: RowsAnswer | RowsRefusal) -> None:
        # a peer that does not read loses its answer; its deadline sends the rows elsewhere
        with suppress(zmq.Again):
            self._router.send_multipart([peer, *encode(answer)], flags=zmq.DONTWAIT, copy=False)

    def close(self) -> None:
        """Stop listening."""
        self._authenticator.stop()
        self._router.close(0)
        self._context.destroy(linger=0)


def _prove(dealer: "zmq.Socket[bytes]", keys: DataPlaneKeys | None, endpoint: str) -> None:
    if keys is None:
        raise PeerLost(f"{endpoint} needs this deployment's keys and there are none")
    prove_to(dealer, server=keys.shard, own=keys.attention)

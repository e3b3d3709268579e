"""The pieces of answers on their way from attention replicas to gateways, past Ray.

A gateway's call of a replica goes through Serve, which picks the replica, counts the request and
says when the replica dies; what the call returns is only how many pieces there were. The pieces
come over a socket of ZeroMQ: ipc on one host, tcp with CURVE between hosts. What all requests of a
replica put out in one turn of its event loop is one message, so a step of the engine costs about
one message for each gateway, however many streams there are. Messages are msgpack.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgpack
import zmq
import zmq.asyncio
import zmq.auth.asyncio

from router.errors import PeerLost
from services.relayed import Answer, Head, Part
from services.transport.keys import DataPlaneKeys, OnlyKey, prove_to

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 10_000  # that a gateway may leave unread; some minutes of an engine's steps
LAST_PIECES_S = 10.0  # for what is under way when the call has returned
UNUSED_S = 600.0  # after which the way to a gateway is closed; it may be gone


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where the pieces of one call go. Endpoints are ZeroMQ's."""

    host: str  # the gateway's Ray node
    near: str  # for replicas of the same host
    far: str  # for others; empty if there is none
    number: int  # of the call, at this gateway


class AnswerDesk:
    """The gateway's end. Used in one event loop."""

    def __init__(
        self,
        name: str,
        *,
        host: str,
        run_dir: Path,
        tcp_host: str = "",
        keys: DataPlaneKeys | None = None,
    ) -> None:
        """Listen below `run_dir`, and on `tcp_host` for holders of the key if that is given.

        Raises PeerLost for tcp without keys.
        """
        if tcp_host and keys is None:
            raise PeerLost("a gateway was asked to listen on tcp without keys")
        context = self._context = zmq.asyncio.Context()
        near = f"ipc://{run_dir / f'answers-{name[-16:]}'}"
        self._sockets = [context.socket(zmq.PULL)]
        self._sockets[0].bind(near)
        far = ""
        self._authenticator: zmq.auth.asyncio.AsyncioAuthenticator | None = None
        if tcp_host and keys is not None:
            self._authenticator = zmq.auth.asyncio.AsyncioAuthenticator(context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(
                "*", OnlyKey(keys.attention.public.encode())
            )
            socket = context.socket(zmq.PULL)
            socket.curve_server = True
            socket.curve_secretkey = keys.gateway.secret.encode()
            socket.curve_publickey = keys.gateway.public.encode()
            socket.bind(f"tcp://{tcp_host}:*")
            far = cast(bytes, socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rstrip("\0")
            self._sockets.append(socket)
        for socket in self._sockets:
            socket.linger = 0
            socket.rcvhwm = QUEUE_MESSAGES
        self._address = ReplyTo(host, near, far, 0)
        self._calls: dict[int, asyncio.Queue[Answer | None]] = {}
        self._heard: set[int] = set()

    async def serve(self) -> None:
        """Hand out what comes in; run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for socket in self._sockets:
                group.create_task(self._read(socket))

    async def _read(self, socket: "zmq.asyncio.Socket") -> None:
        while True:
            for number, *packed in msgpack.unpackb(await socket.recv(), use_list=False):
                if call := self._calls.get(number):  # else it was given up
                    self._heard.add(number)
                    if packed:
                        call.put_nowait(_unpack(packed))

    def open(self) -> "Call":
        """A new call."""
        number = secrets.randbits(63)  # who does not know it cannot send to the call
        pieces = self._calls[number] = asyncio.Queue()
        return Call(replace(self._address, number=number), pieces, self)

    def is_heard(self, number: int) -> bool:
        """Whether anything has come of a call."""
        return number in self._heard

    def forget(self, number: int) -> None:
        """A call has ended."""
        self._calls.pop(number, None)
        self._heard.discard(number)

    def close(self) -> None:
        """Stop listening."""
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)


@dataclass(frozen=True, slots=True)
class Call:
    """One call under way. The queue is as long as the request's output at most."""

    reply_to: ReplyTo
    _pieces: "asyncio.Queue[Answer | None]"
    _desk: AnswerDesk

    async def follow(self, returned: Awaitable[int]) -> AsyncGenerator[Answer, None]:
        """The pieces in order. Raises what the call raises, and PeerLost if some do not come.

        returned: how many pieces there are, once the call has returned.
        """
        ending = asyncio.ensure_future(returned)
        ending.add_done_callback(lambda _: self._pieces.put_nowait(None))
        n_seen, n_all = 0, None
        try:
            while n_all is None or n_seen < n_all:
                try:
                    async with asyncio.timeout(None if n_all is None else LAST_PIECES_S):
                        piece = await self._pieces.get()
                except TimeoutError as error:
                    raise PeerLost(f"{n_seen} of {n_all} pieces of the answer came") from error
                if piece is None:
                    n_all = ending.result()
                else:
                    n_seen += 1
                    yield piece
        finally:
            ending.cancel()
            self.drop()

    @property
    def is_heard(self) -> bool:
        """Whether it is at work: a piece has come, or a sign."""
        return self._desk.is_heard(self.reply_to.number)

    def drop(self) -> None:
        """Take no more pieces."""
        self._desk.forget(self.reply_to.number)


class AnswerLine:
    """The replica's end. Used in one event loop."""

    def __init__(self, *, host: str, keys: DataPlaneKeys | None = None) -> None:
        """host: this replica's Ray node; gateways there are reached by ipc."""
        self._host = host
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._used_s: dict[str, float] = {}
        self._unsent: dict[str, list[tuple[Any, ...]]] = {}

    def send(self, to: ReplyTo, answer: Answer | None) -> None:
        """With all that is sent in this turn of the event loop. None: a sign that it is at work."""
        endpoint = to.near if to.host == self._host else to.far
        packed = (to.number, *_pack(answer)) if answer else (to.number,)
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.setdefault(endpoint, []).append(packed)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, {}
        for endpoint, pieces in unsent.items():
            try:
                self._socket(endpoint).send(msgpack.packb(pieces), flags=zmq.DONTWAIT)
            except zmq.Again:
                log.error("gateway does not read: endpoint=%s lost=%s", endpoint, len(pieces))

    def _socket(self, endpoint: str) -> "zmq.Socket[bytes]":
        now_s = time.monotonic()
        if endpoint not in self._sockets:
            for unused in [e for e, used_s in self._used_s.items() if now_s - used_s > UNUSED_S]:
                del self._used_s[unused]
                self._sockets.pop(unused).close(0)
            socket = self._sockets[endpoint] = self._context.socket(zmq.PUSH)
            socket.linger = 0
            socket.sndhwm = QUEUE_MESSAGES
            if endpoint.startswith("tcp"):
                if self._keys is None:
                    raise PeerLost(f"{endpoint} needs this deployment's keys and there are none")
                prove_to(socket, server=self._keys.gateway, own=self._keys.attention)
            socket.connect(endpoint)
        self._used_s[endpoint] = now_s
        return self._sockets[endpoint]

    def close(self) -> None:
        """Drop what is not sent."""
        for socket in self._sockets.values():
            socket.close(0)
        self._sockets.clear()


def _pack(answer: Answer) -> tuple[Any, ...]:
    if isinstance(answer, Head):
        return answer.status, answer.headers
    counts = (answer.prompt_tokens, answer.output_tokens)
    return answer.body, *counts, answer.can_resume, answer.groups


def _unpack(packed: list[Any]) -> Answer:
    return Head(*packed) if len(packed) == 2 else Part(*packed)

"""A request from Serve's proxy to a gateway in one call, where its stream goes past Ray anyway.

On Serve's own way a request is a call whose answer is a stream of objects, with a second call back
to the proxy for the body. A small body that is there goes along, an event stream comes past Ray
(`bypass`), everything else is short: one call of a Serve handle, with one answer, does. Serve picks
the gateway, counts the request at it and says when it dies, as on its own way; its proxy does not
count it, which it would for the time when its host is given up: by then the host's gateways have
ended all they had, and one of another host does not take such a call. Which paths can be asked for
so, and of which application, the gateways say in their answers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import msgpack
from starlette.requests import Request
from starlette.types import Message, Scope

from router.errors import PeerLost
from services.gateway.body import ALONG
from services.gateway.passing import Incoming, Outgoing

if TYPE_CHECKING:
    from services.gateway.front import Front

log = logging.getLogger(__name__)

DEPLOYMENT = "Gateway"
METHOD = "in_one"
NOT_HERE = b""
"""The answer of a gateway that cannot send streams to this proxy; it has done nothing."""

ASKED = ("method", "path", "query_string", "headers")
"""What a gateway is told of a request's scope, besides the body."""

PAUSE_S = 60.0  # until such calls are tried again

Asking = Callable[[bytes], Awaitable[bytes]]
"""Have one gateway answer. Raises what Serve raises."""


async def answer_in_one(front: "Front", packed: bytes) -> bytes:
    """A gateway's end. packed: by `OneCall.ask`; returns an answer for it."""
    *asked, body = msgpack.unpackb(packed, use_list=False)
    scope: Scope = {"type": "http", **dict(zip(ASKED, asked, strict=True)), ALONG: body}
    if front.streams is None or front.streams.find(scope["headers"]) is None:
        return NOT_HERE
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    response = await front.answer(Request(scope))
    await response(scope, _nothing_comes, send)
    head, *pieces = sent
    whole = b"".join(piece.get("body", b"") for piece in pieces)
    packed_answer: bytes = msgpack.packb((head["status"], head["headers"], whole))
    return packed_answer


async def _nothing_comes() -> NoReturn:
    """ASGI's receive: a client that leaves ends the call."""
    await asyncio.Future()
    raise AssertionError


class OneCall:
    """The proxy's end. Used in one event loop."""

    def __init__(self, connect: Callable[[str], Asking]) -> None:
        """connect: to the gateways of an application; it may block."""
        self._connect = connect
        self._app = ""
        self._asking: Asking | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._paths: set[str] = set()
        self._not_before_s = 0.0

    def learn(self, path: str, app: str) -> None:
        """A gateway of `app` has answered there."""
        if app != self._app:
            self._app, self._asking = app, None
            self._paths.clear()
            self._connecting = asyncio.create_task(self._make(app), name="connect")
        self._paths.add(path)

    async def _make(self, app: str) -> None:
        try:
            asking = await asyncio.to_thread(self._connect, app)
        except Exception as error:  # of Serve, whose own way is left
            log.warning("requests go through Serve's proxy: app=%s %r", app, error)
            return
        if app == self._app:
            self._asking = asking

    def is_known(self, path: str) -> bool:
        """Whether it can be asked for in one call now."""
        is_time = time.monotonic() >= self._not_before_s
        return self._asking is not None and path in self._paths and is_time

    async def ask(self, scope: Scope, incoming: Incoming, answer: Outgoing) -> bool:
        """One attempt, at a path that is known, with the body along.

        Returns whether it was one: if not, no gateway has looked at the request.
        """
        assert self._asking is not None, "ask after is_known"
        asked = (*(scope[name] for name in ASKED), scope[ALONG])
        call = asyncio.ensure_future(self._asking(msgpack.packb(asked)))
        left = asyncio.create_task(incoming.left())
        try:
            await asyncio.wait({call, left}, return_when=asyncio.FIRST_COMPLETED)
            packed = call.result() if call.done() else None
        except Exception as error:
            log.warning("asked in one call: %r", error)
            return True
        finally:
            call.cancel()
            left.cancel()
            await asyncio.wait({call, left})
        if packed == NOT_HERE:
            self._not_before_s = time.monotonic() + PAUSE_S
            return False
        if packed is not None:
            await answer.whole(*msgpack.unpackb(packed))
        return True


def nowhere(app: str) -> Asking:
    """Where there is no Serve. Raises PeerLost."""
    raise PeerLost(f"no Serve to reach the gateways of {app} by")


def connect_through_serve(app: str) -> Asking:
    """To the gateways of a running application. Raises what Serve raises if there is none."""
    from ray import serve
    from ray.serve.exceptions import RequestCancelledError

    calls = serve.get_deployment_handle(DEPLOYMENT, app).options(method_name=METHOD)

    async def asking(packed: bytes) -> bytes:
        response = calls.remote(packed)
        try:
            answer: bytes = await response
        except asyncio.CancelledError:
            with suppress(RequestCancelledError):
                response.cancel()
            raise
        return answer

    return asking

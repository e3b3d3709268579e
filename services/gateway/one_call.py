"""A request from Serve's proxy to a gateway in one call, where its stream goes past Ray anyway.

On Serve's own way a request is a call whose answer is a stream of objects, with a second call back
to the proxy for the body. A small body that is there goes along, an event stream comes past Ray
(`bypass`), everything else is short: one call of a Serve handle, with one answer, does. Serve picks
the gateway, counts the request at it and says when it dies, as on its own way; its proxy does not
count it, which it would for the time when its host is given up: by then the host's gateways have
ended all they had, and one of another host does not take such a call. Which paths can be asked for
so, and of which application, the gateways say in their answers; Serve's routes, whether that is so.
"""

import asyncio
import logging
import time
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack
from starlette.requests import Request
from starlette.types import Message, Scope

from router.errors import PeerLost
from services.answers import Call
from services.gateway.body import ALONG
from services.gateway.errors import BROKEN
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

SIGN_S = 0.5  # after which a gateway says that it has a request
LOOK_S = 2.0  # without such a sign, until it is seen whether there still are gateways
LOOK_EVERY_S = 10.0  # for applications that have come or gone
PAUSE_S = 60.0  # until such calls are tried again

Routes = dict[str, str]
"""Prefix of a path → application."""

Asking = Callable[[bytes], Coroutine[Any, Any, bytes]]
"""Have one gateway answer. Raises what Serve raises."""


async def answer_in_one(front: "Front", packed: bytes) -> bytes:
    """A gateway's end. packed: by `OneCall.ask`; returns an answer for it.

    Raises PeerLost if the answer has no end.
    """
    *asked, body = msgpack.unpackb(packed, use_list=False)
    scope: Scope = {"type": "http", **dict(zip(ASKED, asked, strict=True)), ALONG: body}
    if front.streams is None or (to := front.streams.find(scope["headers"])) is None:
        return NOT_HERE
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    signing = asyncio.get_running_loop().call_later(SIGN_S, front.streams.sign, to)
    try:
        response = await front.answer(Request(scope))
        await response(scope, _nothing_comes, send)
    except Exception:
        log.exception("failed: path=%r", scope["path"])
        if sent:
            raise
        await BROKEN.response(scope["path"])(scope, _nothing_comes, send)
    finally:
        signing.cancel()
    head, *pieces = sent
    if not pieces or pieces[-1].get("more_body"):
        raise PeerLost("the answer has no end")
    whole = b"".join(piece.get("body", b"") for piece in pieces)
    packed_answer: bytes = msgpack.packb((head["status"], head["headers"], whole))
    return packed_answer


async def _nothing_comes() -> NoReturn:
    """ASGI's receive: a client that leaves ends the call."""
    await asyncio.Future()
    raise AssertionError


class OneCall:
    """The proxy's end. Used in one event loop."""

    def __init__(
        self, connect: Callable[[str], Asking], routes: Callable[[], Awaitable[Routes]]
    ) -> None:
        """connect: to the gateways of an application; it may block. routes: of Serve, now."""
        self._connect = connect
        self._ask_routes = routes
        self._app = ""
        self._asking: Asking | None = None
        self._paths: set[str] = set()
        self._routes: Routes = {}
        self._looked_s = -LOOK_EVERY_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._not_before_s = 0.0

    def learn(self, path: str, app: str) -> None:
        """A gateway of `app` has answered there."""
        if app != self._app:
            self._app, self._asking = app, None
            self._paths.clear()
            self._start(self._make(app))
        self._paths.add(path)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, app: str) -> None:
        try:
            asking = await asyncio.to_thread(self._connect, app)
            await self._look()
        except Exception as error:  # of Serve, whose own way is left
            log.warning("requests go through Serve's proxy: app=%s %r", app, error)
            return
        if app == self._app:
            self._asking = asking

    async def _look(self) -> None:
        self._looked_s = time.monotonic()
        self._routes = await self._ask_routes()

    def is_known(self, path: str) -> bool:
        """Whether it can be asked for in one call now."""
        now_s = time.monotonic()
        if self._asking is None or path not in self._paths or now_s < self._not_before_s:
            return False
        if now_s - self._looked_s > LOOK_EVERY_S:
            self._start(self._look())
        return app_of(path, self._routes) == self._app

    async def ask(self, scope: Scope, at: Call, incoming: Incoming, answer: Outgoing) -> bool:
        """One attempt, at a path that is known, with the body along. at: where its stream comes.

        Returns whether it was one: if not, no gateway has looked at the request.
        """
        assert self._asking is not None, "ask after is_known"
        asked = (*(scope[name] for name in ASKED), scope[ALONG])
        call = asyncio.create_task(
            self._asking(msgpack.packb(asked)),
            context=Context(),  # Serve's own of a request before must not be taken for this one's
        )
        left = asyncio.create_task(incoming.left())
        try:
            if await self._is_lost(scope["path"], at, {call, left}):
                return False
            packed = call.result() if call.done() else None
        except (Exception, asyncio.CancelledError) as error:
            if not call.done():
                raise
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

    async def _is_lost(self, path: str, at: Call, tasks: set[asyncio.Task[Any]]) -> bool:
        """Wait for the first of the tasks.

        A handle whose application is being deleted waits for ever for a gateway, without a word.
        """
        while not (await asyncio.wait(tasks, timeout=LOOK_S, return_when=FIRST_COMPLETED))[0]:
            if not at.is_heard:
                await self._look()
                if app_of(path, self._routes) != self._app:
                    return True
        return False


def app_of(path: str, routes: Routes) -> str:
    """Whose `path` is, as Serve has it: the longest of the prefixes; nobody's: empty."""
    prefixes = [
        prefix for prefix in routes if path == prefix or path.startswith(prefix.rstrip("/") + "/")
    ]
    return routes[max(prefixes, key=len)] if prefixes else ""


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

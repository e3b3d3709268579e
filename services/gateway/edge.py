"""Around Serve's HTTP proxy: what it does when a gateway dies, and which headers it acts on.

Runs in the proxy's process, through Serve's own hook for middlewares (`services.local_ray` names
it), before any gateway sees the request; so it looks at no key and imports little. The proxy leaves
a request whose gateway died unanswered: it is sent to another gateway here, once. That one goes on
with a stream that has begun, if its pieces came past Ray (`bypass`); else it gets an error event.
Where the proxy has no gateway at all it says so in plain text, with 404 while the application
starts; clients are told 503 in the shape they read. When all gateways are full, requests are
refused here (`full`). What can be asked for in one call does not go through the proxy (`one_call`).
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable

from pydantic import TypeAdapter, ValidationError
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.errors import PlatformError
from services.answers import AnswerDesk
from services.gateway.body import ALONG
from services.gateway.bypass import BEGUN, HEADER, offer, open_desk
from services.gateway.full import REFUSED, FullGateways
from services.gateway.one_call import Asking, OneCall, Routes, connect_through_serve, nowhere
from services.gateway.passing import REQUEST_ID, SERVES, Headers, Incoming, Outgoing
from services.paths import proxy_dir

log = logging.getLogger(__name__)

ATTEMPTS = 2
ROUTES = f"{SERVES}routes"
ROUTES_READ = TypeAdapter(Routes)
CLIENT_ID = re.compile(rb"^[A-Za-z0-9._:-]{1,128}$")
FOR_SERVE = frozenset(
    {
        b"serve-multiplexed-model-id",  # which replicas to prefer
        b"x-session-id",  # the same
        b"x-request-timeout-seconds",  # whether the proxy gives up; ours is x-request-timeout
        b"x-request-disconnect-disabled",  # keeps an engine at work for a client that left
        HEADER,  # ours to a gateway
        BEGUN,
        REFUSED,
    }
)
"""Headers by which clients could steer the proxy, and of which bad bytes make it answer 500."""

FULL_WORDS = (
    "the engines are busy: one more would wait longer than limits.max_queue_wait_s, or more "
    "would wait than limits.max_queued_requests. Room may be there in {:.2f} s. Try again later."
)


def middlewares() -> list[Middleware]:
    """Serve's proxy asks for them when it starts."""
    return [Middleware(Edge, open_desk=_desk_here, connect=connect_through_serve)]


def _desk_here() -> AnswerDesk | None:
    import ray

    try:
        return open_desk(ray.get_runtime_context().get_node_id(), proxy_dir())
    except (OSError, PlatformError) as error:
        log.warning("streams go through Serve: %s", error)
        return None


def cleaned(headers: Headers) -> Headers:
    """Without what is for Serve, and with exactly one request id that can stand in a log."""
    kept = [one for one in headers if one[0].lower().replace(b"_", b"-") not in FOR_SERVE]
    ids = [value for name, value in kept if name.lower() == REQUEST_ID]
    theirs = ids[0] if len(ids) == 1 and CLIENT_ID.match(ids[0]) else uuid.uuid4().hex.encode()
    return [(REQUEST_ID, theirs), *(one for one in kept if one[0].lower() != REQUEST_ID)]


class Edge:
    """ASGI, around the proxy."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        open_desk: Callable[[], AnswerDesk | None] = lambda: None,
        connect: Callable[[str], Asking] = nowhere,
    ) -> None:
        """open_desk: called with the first request; where streams come in past Ray, if they do.

        connect: to an application's gateways, for requests that go there in one call.
        """
        self._app = app
        self.one_call = OneCall(connect, self._routes)
        self._open_desk = open_desk
        self._full = FullGateways()
        self._has_looked = False
        self._desk: AnswerDesk | None = None
        self._serving: asyncio.Task[None] | None = None

    def _close(self, serving: "asyncio.Task[None]") -> None:
        if not serving.cancelled():
            log.error("streams go through Serve from now on: %r", serving.exception())
        if self._desk:
            self._desk.close()
            self._desk = None

    async def _routes(self) -> Routes:
        """Serve's routes, by its proxy's own path for them; none while that is not in service."""
        body = bytearray()

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            body.extend(message.get("body", b""))

        asked = {"method": "GET", "path": ROUTES, "raw_path": ROUTES.encode(), "query_string": b""}
        scope = {"type": "http", "http_version": "1.1", "headers": [], "root_path": "", **asked}
        await self._app(scope, receive, send)
        try:
            return ROUTES_READ.validate_json(bytes(body))
        except ValidationError:  # words
            return {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other kinds of connection pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._has_looked:
            self._has_looked, self._desk = True, self._open_desk()
            if self._desk:
                self._serving = asyncio.create_task(self._desk.serve(), name="streams")
                self._serving.add_done_callback(self._close)
        headers = cleaned(scope["headers"])
        request_id = headers[0][1]
        method, path = scope["method"], scope["path"]
        incoming, answer = Incoming(receive), Outgoing(send, path, request_id)
        if (wait_s := self._full.refuse(method, path, headers, time.monotonic())) is not None:
            log.info("refused, full: request_id=%s path=%s", request_id.decode(), path)
            await answer.say((503, FULL_WORDS.format(wait_s), 1))
            return
        if not path.startswith(SERVES):
            headers += self._full.counted()
        along = await incoming.all_at_once() if method == "POST" else None
        scope = scope if along is None else {**scope, ALONG: along}
        for attempt in range(1, ATTEMPTS + 1):
            call = self._desk.open() if self._desk and method == "POST" else None
            offered = [*headers, offer(call), *answer.begun()] if call else headers
            asked = {**scope, "headers": offered}
            at = call if along is not None and attempt == 1 else None
            async with answer.expecting(call):
                if not (
                    at
                    and self.one_call.is_known(path)
                    and await self.one_call.ask(asked, at, incoming, answer)
                ):
                    await self._app(asked, incoming.from_the_start(), answer)
            if answer.app:
                self.one_call.learn(path, answer.app)
            if answer.full:
                self._full.hear(headers, answer.full, time.monotonic())
            if answer.is_over or not incoming.can_repeat:
                break
            log.warning("a gateway died in its answer: request_id=%s", request_id.decode())
            if attempt < ATTEMPTS:
                answer.forget()
        if not incoming.has_left:
            await answer.finish()

"""What passes Serve's proxy: a request that can be sent again, and the answers to it as one."""

import asyncio
import logging
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.types import Message, Receive, Send

from router.errors import PeerLost
from services.answers import Call
from services.errors import error_body, error_event, is_anthropic
from services.gateway.bypass import APP, HEADER, begun, count_in, taken_out
from services.gateway.full import FULL
from services.gateway.relay import RESUMABLE, Sent
from services.relayed import Head

log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 8 * 2**20  # of a body, for a second attempt; twice the default limit
MAX_ALONG_BYTES = 64 * 1024  # of a body that goes with its request; Ray stores larger arguments
AT_ONCE_S = 0.005  # in which such a body has come
REQUEST_ID = b"x-request-id"
SERVES = "/-/"  # the proxy's own routes

Headers = list[tuple[bytes, bytes]]
Saying = tuple[int, str, int]
"""An answer of the proxy's own: its status, the words, and seconds until another try."""

DIED: Saying = (502, "the gateway that answered died. Send the request again.", 1)
NO_GATEWAY: Saying = (503, "not ready: no gateway is there. Try again later.", 5)


class Incoming:
    """What the client sends, kept until it can be asked for no more."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0
        self.has_left = False

    @property
    def can_repeat(self) -> bool:
        """Whether a second attempt would see all of it, and somebody waits for it."""
        return not self.has_left and self._bytes <= MAX_KEPT_BYTES

    async def all_at_once(self) -> bytes | None:
        """The whole body, if it has come and is small. Sent with its request it spares a gateway

        to call the proxy for it, which takes as long as the request's own way.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(AT_ONCE_S):
                message = await self._next()
                if message["type"] == "http.request" and not message.get("more_body"):
                    body: bytes = message.get("body", b"")
                    return body if len(body) <= MAX_ALONG_BYTES else None
        return None

    def from_the_start(self) -> Receive:
        """ASGI's receive, which begins with what has come so far."""
        past = iter(self._kept.copy())

        async def receive() -> Message:
            for message in past:
                return message
            return await self._next()

        return receive

    async def left(self) -> None:
        """Returns when the client has left."""
        while not self.has_left:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.has_left = True
            return message
        self._bytes += len(message.get("body", b""))
        if self.can_repeat:
            self._kept.append(message)
        else:
            self._kept.clear()
        return message


class Outgoing:
    """What goes to the client; its beginning is held back until there is a byte of the body."""

    def __init__(self, send: Send, path: str, request_id: bytes) -> None:
        self._send = send
        self._path = path
        self._request_id = request_id
        self._head: MutableMapping[str, Any] | None = None
        self._is_ignored = False
        self.has_begun = False
        self.full = ""  # what a gateway said of its being full
        self.app = ""  # what it said of its application
        self.is_serves_own = False  # an error in Serve's words, of which nothing is passed on
        self._has_ended = False
        self._sent = Sent()  # of a stream that comes past Ray
        self._their_id = ""  # of it
        self._count: asyncio.Future[int] | None = None  # of the pieces that come past Ray
        self._pouring: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether another gateway could add nothing."""
        if self.has_begun and not self._has_ended:
            return not (self._sent.can_resume and self._path in RESUMABLE)
        return self._has_ended or self.is_serves_own

    def begun(self) -> list[tuple[bytes, bytes]]:
        """What tells the next gateway of what the client has."""
        return [begun(self._their_id, self._sent)] if self._sent.n_parts else []

    @asynccontextmanager
    async def expecting(self, call: Call | None) -> AsyncIterator[None]:
        """One attempt, whose stream may come by `call`; at the end all of it has been sent."""
        self._expect(call)
        try:
            yield
            if self._count and not self._count.done():
                self._count.set_exception(PeerLost("the gateway died"))
            await self._poured()
        finally:
            if self._pouring:
                self._pouring.cancel()
            if call:
                call.drop()

    def _expect(self, call: Call | None) -> None:
        self._count, self._pouring = None, None
        self._is_ignored = False
        if call:
            self._count = asyncio.get_running_loop().create_future()
            self._pouring = asyncio.create_task(self._pour(call, self._count))

    async def _pour(self, call: Call, count: "asyncio.Future[int]") -> None:
        async for piece in call.follow(count):
            if isinstance(piece, Head):
                named = [*piece.headers, (REQUEST_ID, self._request_id)]  # Serve adds it to its own
                head = {"type": "http.response.start", "status": piece.status, "headers": named}
                self._hear(head)
                continue
            await self._begin()
            self._sent.add(piece)
            await self._send({"type": "http.response.body", "body": piece.body, "more_body": True})

    async def _poured(self) -> bool:
        """Whether all pieces have come."""
        if self._pouring:
            try:
                await self._pouring
            except PeerLost as error:
                if self._their_id:
                    log.warning("stream cut: request_id=%s %s", self._request_id.decode(), error)
                return False
        return True

    def _hear(self, head: MutableMapping[str, Any]) -> str:
        """An answer's head, a stream's comes twice; returns the gateway's id of a stream."""
        headers, their_id = taken_out(head["headers"], HEADER)
        headers, self.full = taken_out(headers, FULL)
        headers, self.app = taken_out(headers, APP)
        self._their_id = self._their_id or their_id
        if not self.has_begun:
            self._head = {**head, "headers": headers}
        return their_id

    async def __call__(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            their_id = self._hear(message)
            self._is_ignored = self.has_begun and not their_id  # a second gateway's refusal
            if self._pouring and not their_id:  # it goes through Serve
                self._pouring.cancel()
                self._count = self._pouring = None
            if not self.has_begun:
                is_error = message["status"] >= 400 and not self._path.startswith(SERVES)
                self.is_serves_own = is_error and self._is(b"text/plain")
            return
        if self.is_serves_own or self._is_ignored:
            return
        if self._count:
            if message.get("more_body", False):
                return
            self._count.set_result(count_in(message.get("body", b"")))
            if not await self._poured():
                return
            message = {"type": "http.response.body"}
        if message["type"] == "http.response.body":
            is_last = not message.get("more_body", False)
            if not message.get("body") and not is_last:
                return
            await self._begin()
            self._has_ended = is_last
        await self._send(message)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer that came at once, not through Serve's proxy, which names requests."""
        named = [*headers, (REQUEST_ID, self._request_id)]
        await self({"type": "http.response.start", "status": status, "headers": named})
        await self({"type": "http.response.body", "body": body})

    def forget(self) -> None:
        """The head of the last attempt, if it has not been sent."""
        if not self.has_begun:
            self._head = None

    async def finish(self) -> None:
        """Say what is the matter if the answer has no end; a body without events is cut off."""
        if self._has_ended:
            return
        if not self.has_begun:
            await self.say(NO_GATEWAY if self.is_serves_own else DIED)
        elif self._is(b"text/event-stream"):
            body = error_event(*DIED[:2], path=self._path)
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def say(self, saying: Saying) -> None:
        """An answer that is no gateway's."""
        status, words, retry_after_s = saying
        headers = [
            (b"content-type", b"application/json"),
            (b"retry-after", str(retry_after_s).encode()),
            (REQUEST_ID, self._request_id),
        ]
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        body = error_body(status, words, path=self._path)
        await self._begin()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _is(self, content_type: bytes) -> bool:
        headers: Headers = list(self._head["headers"]) if self._head else []
        return any(
            name.lower() == b"content-type" and value.startswith(content_type)
            for name, value in headers
        )

    async def _begin(self) -> None:
        if self.has_begun or self._head is None:
            return
        self.has_begun = True
        if is_anthropic(self._path):  # whose clients look for it there
            theirs = [*self._head["headers"], (b"request-id", self._request_id)]
            self._head = {**self._head, "headers": theirs}
        await self._send(self._head)

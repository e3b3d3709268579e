"""The answer to a relayed request: waits its turn, streams, and ends with whoever leaves."""

import asyncio
import logging
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from monitoring.meter import Meter
from router.errors import CapacityError, PlatformError
from services.answers import ReplyTo
from services.errors import error_body, error_event, is_anthropic, is_error_event, reshaped
from services.gateway.bypass import APP, HEADER, OpenStream
from services.gateway.errors import Refusal
from services.gateway.keys import Key
from services.gateway.relay import Sent, relay
from services.gateway.request_account import LEFT, RequestAccount
from services.relayed import Head, Part, RelayedRequest
from services.tracing import inside

if TYPE_CHECKING:
    from services.gateway.front import Front

log = logging.getLogger(__name__)

LENGTH = b"content-length"
KEPT = (b"content-type", LENGTH, b"retry-after", b"allow")
"""Of the replica's headers; the others speak of its side of the relay."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request on its way. generates: counts against the key's limits."""

    request: RelayedRequest
    key: Key
    generates: bool
    account: RequestAccount
    reply_to: ReplyTo | None = None  # at the proxy, for an event stream
    sent: Sent | None = None  # by a gateway that died in the stream


class RelayedResponse(Response):
    """Its status is known only when the replica has answered."""

    def __init__(self, front: "Front", job: Job) -> None:
        super().__init__()
        self._front = front
        self._job = job
        self._has_begun = False
        self._error: bytearray | None = None  # of vLLM's routes, which is to change its shape
        self._stream: OpenStream | None = None  # if the pieces go past Ray
        self._to_come = 0  # bytes of a body whose length the head says

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. A client that leaves ends the request in the engine."""
        with inside(self._job.account.span):
            await self._answer_or_leave(receive, send)

    async def _answer_or_leave(self, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(send))
        left = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            self._job.account.ended("cancelled", LEFT)  # unless it has ended
            if not work.done():
                log.info("client left: request_id=%s", self._job.request.request_id)
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _answer(self, send: Send) -> None:
        job, front = self._job, self._front
        used = 0
        try:
            left_s = job.request.expires_s - time.time()
            async with (
                asyncio.timeout(left_s),
                front.door(generates=job.generates).enter(job.key.name),
                aclosing(
                    relay(job.request, front.ask, front.meter.took_over, sent=job.sent)
                ) as answers,
            ):
                async for answer in answers:
                    if isinstance(answer, Head):
                        await self._begin(send, answer)
                        continue
                    if self._error is not None:
                        self._error += answer.body
                        continue
                    tokens = answer.prompt_tokens + answer.output_tokens
                    if job.generates and tokens > used:
                        front.limiter.used(job.key, tokens - used)
                        used = tokens
                    job.account.answered(
                        prompt_tokens=answer.prompt_tokens, output_tokens=answer.output_tokens
                    )
                    await self._send(send, answer)
            await self._end(send, self._reshaped_error())
            self._was_given()
        except TimeoutError:
            await self._refuse(send, Refusal(504, "the request's time is over."))
        except Refusal as refusal:
            await self._refuse(send, refusal)
        except CapacityError as error:
            await self._refuse(send, Refusal(503, f"{error}", retry_after_s=1))
        except PlatformError as error:
            log.error("request lost: request_id=%s %s", job.request.request_id, error)
            await self._refuse(send, Refusal(502, f"{error}", retry_after_s=1))
        finally:
            if job.generates:
                front.limiter.ended(job.key)

    async def _begin(self, send: Send, head: Head) -> None:
        self._has_begun, self.status_code = True, head.status
        kept = [(name, value) for name, value in head.headers if name.lower() in KEPT]
        if head.status >= HTTPStatus.BAD_REQUEST and is_anthropic(self._job.request.path):
            self._error = bytearray()
            kept = [one for one in kept if one[0].lower() != LENGTH]
        self._to_come = sum(int(value) for name, value in kept if name.lower() == LENGTH)
        if self._job.reply_to is not None:
            kept.append((APP, self._front.settings.app.encode()))
        if line := self._front.streams:
            self._stream = line.open(self._job.reply_to, head)
        if self._stream is not None:
            kept.append((HEADER, self._job.request.request_id.encode()))
            self._stream.send(Head(head.status, tuple(kept)))
        await send({"type": "http.response.start", "status": head.status, "headers": kept})

    async def _send(self, send: Send, part: Part) -> None:
        if is_error_event(part.body):
            self._job.account.ended("server_error", self.status_code)
        if self._stream is not None:
            self._stream.send(part)
            return
        self._to_come -= len(part.body)
        if self._to_come == 0:  # whoever has all of it may leave before the replica says so too
            self._was_given()
        await send({"type": "http.response.body", "body": part.body, "more_body": True})

    def _was_given(self) -> None:
        self._job.account.ended(Meter.outcome_of(self.status_code), self.status_code)

    async def _end(self, send: Send, body: bytes) -> None:
        if self._stream is not None:
            self._stream.send(Part(body))
            body = self._stream.last_body()
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _reshaped_error(self) -> bytes:
        if self._error is None:
            return b""
        return reshaped(self.status_code, bytes(self._error), self._job.request.path)

    async def _refuse(self, send: Send, refusal: Refusal) -> None:
        self._job.account.ended(Meter.outcome_of(refusal.status), refusal.status)
        path = self._job.request.path
        if self._has_begun:
            await self._end(send, error_event(refusal.status, refusal.message, path=path))
            return
        headers = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        headers.append((b"content-type", b"application/json"))
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        body = error_body(refusal.status, refusal.message, refusal.param, path=path)
        await self._end(send, body)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

"""Relays one request to an attention replica, and to another one if that dies.

Before the first byte the request is simply sent again, once. A stream that has begun goes on where
it was: the next replica is told the token ids so far, makes the same pieces of body again, which
are left out here, and adds the rest.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from router.errors import PeerLost
from services.relayed import Head, Part, RelayedRequest, Resume

log = logging.getLogger(__name__)

Answers = AsyncGenerator[Head | Part, None]
Ask = Callable[[RelayedRequest], Answers]
"""Have one attention replica answer. Raises PeerLost if it dies, CapacityError if none is there."""


class TookOver(Protocol):
    """What is told of it."""

    def __call__(self, *, in_stream: bool) -> None:
        """Count it."""


RESUMABLE = ("/v1/chat/completions", "/v1/completions", "/v1/messages")
"""Not /v1/responses: every event carries identifiers that the next replica would draw anew."""

MAX_ATTEMPTS = 3
PAUSE_S = 0.25  # until a replica whose engine died has ended too, or it would be asked again
CREATED = re.compile(rb'"created":(\d+)')


@dataclass(slots=True)
class Sent:
    """What the client has got; the head goes with the first part, so that a death before that

    costs nothing. has_head: it has been passed on.
    """

    head: Head | None = None
    has_head: bool = False
    n_parts: int = 0
    n_bytes: int = 0
    groups: list[tuple[int, ...]] = field(default_factory=list)
    can_resume: bool = False
    created: bytes = b""  # of the first part; the same in all of them

    def add(self, part: Part) -> None:
        """One more."""
        if not self.n_parts and (found := CREATED.search(part.body)):
            self.created = found[0]
        self.n_parts += 1
        self.n_bytes += len(part.body)
        self.groups += part.groups
        self.can_resume = part.can_resume


async def relay(
    request: RelayedRequest,
    ask: Ask,
    took_over: TookOver,
    *,
    sent: Sent | None = None,
    pause_s: float = PAUSE_S,
) -> Answers:
    """What the client is to get. Raises PeerLost if it cannot be finished, CapacityError.

    took_over: called with whether the answer had begun, each time another replica is asked.
    sent: by a gateway that has died since; it is gone on with.
    """
    if sent is None:
        sent = Sent()
    else:
        took_over(in_stream=True)
        request = replace(request, resume=Resume(tuple(sent.groups), sent.n_parts))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            async with aclosing(_attempt(request, ask, sent)) as answers:
                async for answer in answers:
                    yield answer
            return
        except PeerLost as error:
            what = f"after {sent.n_parts} parts" if sent.n_parts else "before its answer"
            log.warning("replica lost: request_id=%s %s: %s", request.request_id, what, error)
            if attempt == MAX_ATTEMPTS or time.time() > request.expires_s:
                raise
            if not sent.n_parts:
                if attempt > 1:
                    raise
            elif not (sent.can_resume and request.path in RESUMABLE):
                raise PeerLost(
                    "the attention replica died, and this kind of answer cannot be taken over by "
                    "another one. Send the request again."
                ) from error
            took_over(in_stream=sent.n_parts > 0)
            await asyncio.sleep(pause_s)
            request = replace(request, resume=Resume(tuple(sent.groups), sent.n_parts))


async def _attempt(request: RelayedRequest, ask: Ask, sent: Sent) -> Answers:
    again = _Again(sent.n_parts, sent.n_bytes, sent.created) if sent.n_parts else None
    if not sent.n_parts:
        request = replace(request, resume=None)
    async with aclosing(ask(request)) as answers:
        async for answer in answers:
            if isinstance(answer, Head):
                if sent.n_parts and answer.status != (sent.head.status if sent.head else 200):
                    raise PeerLost(f"taken over by another replica, it ended with {answer.status}")
                if sent.head is None or not sent.n_parts:
                    sent.head = answer
                continue
            part = answer if again is None else again.follow(answer)
            if sent.head and not sent.has_head and (part or sent.n_parts):
                sent.has_head = True
                yield sent.head
            if part is not None:
                sent.add(part)
                yield part
    if sent.head and not sent.has_head:
        yield sent.head


class _Again:
    """Leaves out what the client has, and keeps the time of creation that it was told."""

    def __init__(self, n_parts: int, n_bytes: int, created: bytes) -> None:
        self._parts = n_parts
        self._bytes = n_bytes
        self._created = created
        self._other = b""

    def follow(self, part: Part) -> Part | None:
        """The part as the client should see it; None if it has it. Raises PeerLost if not alike."""
        if not self._other and (found := CREATED.search(part.body)):
            self._other = found[0]
        if self._parts:
            self._parts -= 1
            self._bytes -= len(part.body)
            if not self._parts and self._bytes:
                raise PeerLost("taken over by another replica, the answer came out differently")
            return None
        if self._other and self._created:
            return replace(part, body=part.body.replace(self._other, self._created))
        return part

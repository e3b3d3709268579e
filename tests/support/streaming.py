"""A gateway whose replica streams known pieces, for what stands between it and a client."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from services.config import load_config
from services.gateway.bypass import StreamLine
from services.gateway.front import Front
from services.gateway.settings import gateway_settings
from services.messages import GatewayNews
from services.relayed import Head, Part, RelayedRequest

HOST = "ab" * 28
EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"),)
PIECES = [f"data: {n} of ID\n\n".encode() for n in range(200)]
TEXT = b"".join(PIECES).decode()
Gateway = Callable[[Scope, Receive, Send], Awaitable[None]]


class Proxy:
    """Serve's proxy and the gateways behind it, in turn; keeps what went through it."""

    def __init__(self, *gateways: Gateway) -> None:
        self.gateways = list(gateways)
        self.through: list[Message] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.routes: dict[str, str] = {"/": "expertmesh"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/-/routes":
            await JSONResponse(self.routes)(scope, receive, send)
            return
        self.headers = scope["headers"]

        async def keeping(message: Message) -> None:
            self.through.append(message)
            await send(message)

        await self.gateways.pop(0)(scope, receive, keeping)


def make_front(
    line: StreamLine, *, dies_after: int | None = None, says: int = 200, can_resume: bool = True
) -> Front:
    """A real one but for the replica. dies_after: pieces; says: the replica's status."""

    async def replica(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        if says != 200:
            yield Head(says, ((b"content-type", b"application/json"),))
            yield Part(b"{}")
            return
        if not json.loads(request.body)["stream"]:
            yield Head(200, ((b"content-type", b"application/json"),))
            yield Part(b'{"choices": []}')
            return
        yield Head(200, EVENTS)
        told = request.resume.groups if request.resume else ()
        assert told == tuple((n,) for n in range(len(told)))
        for count, piece in enumerate(PIECES):
            piece = piece.replace(b"ID", request.request_id.encode())
            if count == dies_after:
                await asyncio.sleep(0.05)  # what was sent is on its way
                raise asyncio.CancelledError
            yield Part(piece, 3, count, can_resume, ((count,),))

    settings = gateway_settings(load_config(None, {"model.path": "m"}))
    front = Front(settings, replica, {}, streams=line)
    front.hear(GatewayNews(engines=1), 0.0)
    return front


def as_app(front: Front) -> Gateway:
    """What Serve's proxy reaches."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await (await front.answer(Request(scope, receive)))(scope, receive, send)
        except asyncio.CancelledError:  # it died: the proxy sees no more of it
            return

    return app


def text_of(answer: httpx.Response) -> str:
    """With the request's id, which is the same in all pieces, left out."""
    [one] = set(re.findall(r"of ([0-9a-f]{32})", answer.text))
    return answer.text.replace(one, "ID")

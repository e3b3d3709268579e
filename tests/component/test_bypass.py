"""Event streams from a gateway to the proxy's middleware over a real socket, past Serve."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from services.answers import AnswerDesk
from services.gateway.bypass import HEADER, StreamLine, open_desk
from services.gateway.edge import Edge
from tests.support.streaming import (
    EVENTS,
    HOST,
    PIECES,
    TEXT,
    Gateway,
    Proxy,
    as_app,
    make_front,
    text_of,
)


def gateway(line: StreamLine, **options: Any) -> Gateway:
    return as_app(make_front(line, **options))


async def ask(
    proxy: Proxy, desk: AnswerDesk | None, *, stream: bool = True, header: bytes = b""
) -> httpx.Response:
    app = Edge(proxy, open_desk=lambda: desk)
    transport = httpx.ASGITransport(app)
    headers = [(HEADER, header)] if header else []
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        body = {"model": "m", "prompt": "Hello", "stream": stream}
        return await client.post("/v1/completions", json=body, headers=headers)


def bodies(proxy: Proxy) -> list[bytes]:
    return [m["body"] for m in proxy.through if m.get("body")]


async def test_a_stream_goes_past_serve(line: StreamLine, desk: AnswerDesk) -> None:
    proxy = Proxy(gateway(line))
    answer = await ask(proxy, desk)
    assert text_of(answer) == TEXT
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert HEADER.decode() not in answer.headers
    assert bodies(proxy) == [b"201"]  # the head and the pieces


async def test_a_streams_beginning_does_not_wait_for_serve(
    line: StreamLine, desk: AnswerDesk
) -> None:
    """Serve has passed nothing on yet when the client gets the first piece."""
    sent: list[Message] = []
    has_text = asyncio.Event()
    answering = gateway(line)

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        late: list[Message] = []

        async def keep(message: Message) -> None:
            late.append(message)

        await answering(scope, receive, keep)
        async with asyncio.timeout(10):
            await has_text.wait()
        for message in late:
            await send(message)

    async def send(message: Message) -> None:
        sent.append(message)
        if message.get("body", b"").startswith(b"data: 0 "):
            has_text.set()

    incoming = [{"type": "http.request", "body": b'{"model": "m", "stream": true}'}]

    async def receive() -> Message:
        if not incoming:
            await asyncio.Event().wait()
        return incoming.pop()

    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"mine")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    await Edge(proxy, open_desk=lambda: desk)({**scope, "query_string": b""}, receive, send)
    assert [m["type"] for m in sent[:2]] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 200
    assert sent[0]["headers"] == [*EVENTS, (b"x-request-id", b"mine")]
    assert len([m for m in sent if m["type"] == "http.response.start"]) == 1
    assert len(sent) == 2 + len(PIECES) and not sent[-1].get("more_body")


async def test_what_is_no_stream_goes_through_serve(line: StreamLine, desk: AnswerDesk) -> None:
    proxy = Proxy(gateway(line))
    answer = await ask(proxy, desk, stream=False)
    assert answer.json() == {"choices": []}
    assert bodies(proxy) == [answer.content]


async def test_without_a_desk_a_stream_goes_through_serve(line: StreamLine) -> None:
    proxy = Proxy(gateway(line))
    assert text_of(await ask(proxy, None)) == TEXT
    assert len(bodies(proxy)) == len(PIECES)


async def test_a_gateway_elsewhere_answers_through_serve(tmp_path: Path, desk: AnswerDesk) -> None:
    proxy = Proxy(gateway(StreamLine("cd" * 28, tmp_path)))
    assert text_of(await ask(proxy, desk)) == TEXT
    assert len(bodies(proxy)) == len(PIECES)


async def test_a_gateway_that_dies_before_a_piece_is_followed_by_another(
    line: StreamLine, desk: AnswerDesk
) -> None:
    proxy = Proxy(gateway(line, dies_after=0), gateway(line))
    assert text_of(await ask(proxy, desk)) == TEXT


@pytest.mark.parametrize("dies_after", [1, 70, 199])
async def test_a_stream_whose_gateway_dies_is_gone_on_with_by_another(
    line: StreamLine, desk: AnswerDesk, dies_after: int
) -> None:
    proxy = Proxy(gateway(line, dies_after=dies_after), gateway(line))
    assert text_of(await ask(proxy, desk)) == TEXT


@pytest.mark.parametrize(
    ("second", "can_resume"), [({"says": 503}, True), ({"dies_after": 150}, True), ({}, False)]
)
async def test_a_stream_that_nobody_goes_on_with_ends_with_an_error(
    line: StreamLine, desk: AnswerDesk, second: dict[str, Any], can_resume: bool
) -> None:
    first = gateway(line, dies_after=70, can_resume=can_resume)
    *begun, error = text_of(await ask(Proxy(first, gateway(line, **second)), desk)).split("data: ")
    assert TEXT.startswith("data: ".join(begun))
    assert len(begun) == 1 + second.get("dies_after", 70)
    assert "died" in json.loads(error)["error"]["message"]


async def test_clients_cannot_name_a_socket(line: StreamLine, desk: AnswerDesk) -> None:
    proxy = Proxy(gateway(line))
    await ask(proxy, None, header=f"{HOST} answers-proxy-1 7".encode())
    assert HEADER not in dict(proxy.headers)


@pytest.mark.parametrize(
    ("header", "is_found"),
    [
        ("{host} {name} 7", True),
        ("", False),
        ("no", False),
        ("cd {name} 7", False),
        ("{host} ../{name} 7", False),
        ("{host} answers-there-is-none 7", False),
        ("{host} {name} -7", False),
    ],
)
async def test_only_a_header_that_names_this_hosts_desk_is_heeded(
    line: StreamLine, desk: AnswerDesk, header: str, is_found: bool
) -> None:
    told = header.format(host=HOST, name=f"answers-proxy-{os.getpid()}").encode()
    assert (line.find([(HEADER, told)]) is not None) is is_found


def test_sockets_that_dead_proxies_left_are_removed(tmp_path: Path) -> None:
    for pid in (1, 999_999_999):
        (tmp_path / f"answers-proxy-{pid}").touch()
    open_desk(HOST, tmp_path).close()
    assert (tmp_path / "answers-proxy-1").exists()
    assert not (tmp_path / "answers-proxy-999999999").exists()

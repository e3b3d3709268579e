"""Requests from the proxy's middleware to a gateway in one call, with the streams beside it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from router.errors import PeerLost
from services.answers import AnswerDesk
from services.gateway import one_call
from services.gateway.bypass import APP, StreamLine
from services.gateway.edge import Edge
from services.gateway.one_call import NOT_HERE, Asking, answer_in_one, app_of
from services.relayed import Head, Part, RelayedRequest
from tests.support.streaming import PIECES, TEXT, Proxy, as_app, make_front, text_of

BODY = {"model": "m", "prompt": "Hello", "stream": True}


class Gateways:
    """What a Serve handle reaches. asking: one gateway's way to answer, which may be changed."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.apps: list[str] = []
        self.n_asked = 0

    def connect(self, app: str) -> Asking:
        self.apps.append(app)

        async def ask(packed: bytes) -> bytes:
            self.n_asked += 1
            return await self.asking(packed)

        return ask


@pytest.fixture
def proxy(line: StreamLine) -> Proxy:
    """Behind which there are as many gateways as anybody asks for."""
    return Proxy(*[as_app(make_front(line))] * 5)


@pytest.fixture
def gateways(line: StreamLine) -> Gateways:
    front = make_front(line)
    return Gateways(lambda packed: answer_in_one(front, packed))


@pytest.fixture
async def edge(proxy: Proxy, desk: AnswerDesk, gateways: Gateways) -> Edge:
    """Has had one answer, which said whose it is."""
    edge = Edge(proxy, open_desk=lambda: desk, connect=gateways.connect)
    assert text_of(await ask(edge)) == TEXT
    async with asyncio.timeout(10):
        while not edge.one_call.is_known("/v1/completions"):
            await asyncio.sleep(0.01)
    assert (gateways.apps, gateways.n_asked) == (["expertmesh"], 0)
    proxy.through.clear()
    return edge


async def ask(edge: Edge, path: str = "/v1/completions", **changes: object) -> httpx.Response:
    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        """The edge, for a client that sends its body at once and stays."""
        body = b""
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            body += message["body"]
        incoming: list[Message] = [{"type": "http.request", "body": body + message["body"]}]

        async def all_of_it() -> Message:
            if not incoming:
                await asyncio.Event().wait()
            return incoming.pop()

        await edge(scope, all_of_it, send)

    transport = httpx.ASGITransport(whole)
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        headers = {"x-request-id": "mine"}
        return await client.post(path, json=BODY | changes, headers=headers)


async def test_a_stream_needs_nothing_of_serves_proxy(
    edge: Edge, proxy: Proxy, gateways: Gateways
) -> None:
    answer = await ask(edge)
    assert text_of(answer) == TEXT
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert APP.decode() not in answer.headers
    assert (proxy.through, gateways.n_asked) == ([], 1)


async def test_a_document_comes_in_the_calls_answer(edge: Edge, proxy: Proxy) -> None:
    answer = await ask(edge, stream=False)
    assert (answer.status_code, answer.json()) == (200, {"choices": []})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert proxy.through == []


async def test_a_refusal_does_too(edge: Edge, proxy: Proxy) -> None:
    answer = await ask(edge, n=1000)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert proxy.through == []


async def test_only_what_a_gateway_has_answered_is_asked_for_so(
    edge: Edge, proxy: Proxy, gateways: Gateways
) -> None:
    for way, n_asked in (("serve", 0), ("one call", 1)):
        proxy.through.clear()
        assert text_of(await ask(edge, "/v1/chat/completions")) == TEXT
        assert (gateways.n_asked, bool(proxy.through)) == (n_asked, way == "serve")


async def test_large_bodies_go_through_serve(edge: Edge, proxy: Proxy) -> None:
    assert text_of(await ask(edge, prompt="x" * 100_000)) == TEXT
    assert proxy.through


async def test_after_a_death_the_request_goes_through_serve(
    edge: Edge, proxy: Proxy, gateways: Gateways
) -> None:
    async def dies(packed: bytes) -> bytes:
        raise RuntimeError("the actor died")

    gateways.asking = dies
    assert text_of(await ask(edge)) == TEXT
    assert proxy.through


@pytest.mark.parametrize("dies_after", [1, 70, 199])
async def test_a_stream_that_had_begun_is_gone_on_with(
    edge: Edge, proxy: Proxy, gateways: Gateways, line: StreamLine, dies_after: int
) -> None:
    front = make_front(line, dies_after=dies_after)

    async def dies(packed: bytes) -> bytes:
        with suppress(PeerLost):
            await answer_in_one(front, packed)
        raise RuntimeError("the actor died")

    gateways.asking = dies
    assert text_of(await ask(edge)) == TEXT
    left = [m["body"] for m in proxy.through if m.get("body")]
    assert left == [str(1 + len(PIECES) - dies_after).encode()], "the head and what was missing"


async def test_gateways_of_other_hosts_are_left_to_serve_for_a_while(
    edge: Edge, proxy: Proxy, gateways: Gateways
) -> None:
    elsewhere = make_front(StreamLine("cd" * 28))
    gateways.asking = lambda packed: answer_in_one(elsewhere, packed)
    for _ in range(2):
        proxy.through.clear()
        assert text_of(await ask(edge)) == TEXT
        assert proxy.through
    assert gateways.n_asked == 1


async def test_a_call_that_nobody_takes_is_given_up_when_the_application_is_gone(
    edge: Edge, proxy: Proxy, gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_call, "LOOK_S", 0.05)

    async def waits(packed: bytes) -> bytes:
        proxy.routes = {}
        await asyncio.Event().wait()
        return NOT_HERE

    gateways.asking = waits
    for n_asked in (1, 1):
        proxy.through.clear()
        async with asyncio.timeout(10):
            assert text_of(await ask(edge)) == TEXT
        assert gateways.n_asked == n_asked, "the second time it is known"
        assert proxy.through


async def test_a_call_that_a_gateway_has_taken_is_waited_for(
    edge: Edge, proxy: Proxy, gateways: Gateways, monkeypatch: pytest.MonkeyPatch, line: StreamLine
) -> None:
    """It is deleted with its application, when it has answered."""
    monkeypatch.setattr(one_call, "SIGN_S", 0.01)
    monkeypatch.setattr(one_call, "LOOK_S", 0.1)
    front = make_front(line)
    ask_replica = front.ask

    async def late(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        proxy.routes = {}
        await asyncio.sleep(0.5)
        async for answer in ask_replica(request):
            yield answer

    front.ask = late
    gateways.asking = lambda packed: answer_in_one(front, packed)
    assert (await ask(edge, stream=False)).json() == {"choices": []}
    assert proxy.through == []


async def test_a_gateways_own_mistake_is_an_error_and_not_repeated(
    edge: Edge, proxy: Proxy, gateways: Gateways, monkeypatch: pytest.MonkeyPatch, line: StreamLine
) -> None:
    front = make_front(line)
    monkeypatch.setattr(front, "answer", lambda request: 1 / 0)
    gateways.asking = lambda packed: answer_in_one(front, packed)
    answer = await ask(edge)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, 500)
    assert (proxy.through, gateways.n_asked) == ([], 1)


async def test_an_answer_without_its_end_is_a_death(
    edge: Edge, proxy: Proxy, gateways: Gateways, line: StreamLine
) -> None:
    front = make_front(line, dies_after=70)
    gateways.asking = lambda packed: answer_in_one(front, packed)
    assert text_of(await ask(edge)) == TEXT
    assert proxy.through


@pytest.mark.parametrize(
    ("path", "app"),
    [
        ("/v1/completions", "ours"),
        ("/v1/embeddings", "theirs"),
        ("/v1/embeddings/x", "theirs"),
        ("/v1/embeddings-x", "ours"),
    ],
)
def test_the_longest_prefix_says_whose_a_path_is(path: str, app: str) -> None:
    assert app_of(path, {"/": "ours", "/v1/embeddings": "theirs"}) == app
    assert app_of(path, {}) == ""


async def test_a_client_that_leaves_ends_the_call(
    edge: Edge, proxy: Proxy, gateways: Gateways
) -> None:
    is_asked, ended = asyncio.Event(), asyncio.Event()

    async def waits(packed: bytes) -> bytes:
        is_asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return NOT_HERE

    gateways.asking = waits
    incoming: list[Message] = [{"type": "http.request", "body": b"{}"}]

    async def receive() -> Message:
        if not incoming:
            await is_asked.wait()
        return incoming.pop() if incoming else {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
    async with asyncio.timeout(10):
        await edge({**scope, "headers": []}, receive, send)
        await ended.wait()
    assert (sent, proxy.through) == ([], [])

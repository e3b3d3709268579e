"""What a gateway counts of the requests that go through it."""

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from router.errors import PeerLost
from services.config import load_config
from services.errors import error_event
from services.gateway.front import Front
from services.gateway.settings import gateway_settings
from services.messages import GatewayNews
from services.relayed import Head, Part, RelayedRequest

BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
Answers = AsyncGenerator[Head | Part, None]


async def ask(request: RelayedRequest) -> Answers:
    """What the replica does stands in the path or in the user's words."""
    if b"dies" in request.body:
        raise PeerLost("gone")
    if b"is wrong" in request.body:
        yield Head(400, ())
        yield Part(b"{}")
        return
    if b"is all" in request.body:
        yield Head(200, ((b"Content-Length", b"4"),))
        yield Part(b"{ ")
        yield Part(b" }", prompt_tokens=3, output_tokens=2)
        await asyncio.Event().wait()
    yield Head(200, ())
    yield Part(b"data: 1\n\n", prompt_tokens=3)
    if b"strands" in request.body:
        yield Part(error_event(503, "no shard"))
        return
    if b"never ends" in request.body:
        await asyncio.Event().wait()
    yield Part(b"data: 2\n\n", prompt_tokens=3, output_tokens=1)
    yield Part(b"data: 3\n\n", prompt_tokens=3, output_tokens=2)


@pytest.fixture
def front() -> Front:
    config = load_config(None, {"model.path": "m"})
    front = Front(gateway_settings(config), ask, {})
    front.hear(GatewayNews(engines=1), 0.0)
    return front


def client(front: Front) -> httpx.AsyncClient:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await front.answer(Request(scope, receive))
        await response(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


def counted(front: Front) -> tuple[dict[tuple[str, ...], float], float, float]:
    """Requests by route and outcome; first tokens; requests in flight."""
    account = front.report().account
    assert account is not None
    by = {key[1:]: float(n) for key, n in account.totals.items() if "requests_total" in key[0]}
    first = account.totals["expertmesh_ttft_seconds",][:-1].sum()
    open_now = account.states["expertmesh_requests_in_flight",]
    return {key: n for key, n in by.items() if n}, float(first), float(open_now)


@pytest.mark.parametrize(
    ("words", "outcome", "first_tokens"),
    [
        ("is well", "ok", 1),
        ("dies", "server_error", 0),
        ("strands", "server_error", 0),
        ("is wrong", "client_error", 0),
    ],
)
async def test_an_answer_counts_by_how_it_ends(
    front: Front, words: str, outcome: str, first_tokens: int
) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": words}]}
    async with client(front) as http:
        await http.post("/v1/chat/completions", json=body)
    assert counted(front) == ({("chat", outcome): 1}, first_tokens, 0)


async def test_what_is_refused_counts_and_own_routes_do_not(front: Front) -> None:
    async with client(front) as http:
        assert (await http.post("/v1/completions", content=b"{")).status_code == 415
        assert (await http.get("/health")).status_code == 200
        front.hear(GatewayNews(problem="no engine"), 0.0)
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 503
        front.hear(GatewayNews(is_closing=True), 0.0)
        assert (await http.post("/v1/messages", json=BODY)).status_code == 503
    expected = {
        ("completions", "client_error"): 1.0,
        ("chat", "server_error"): 1.0,
        ("messages", "server_error"): 1.0,
    }
    assert counted(front) == (expected, 0, 0)


async def test_a_client_that_leaves_is_not_a_failure(front: Front) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "never ends"}]}
    async with client(front) as http:
        asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
        while counted(front)[2] == 0:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert counted(front) == ({("chat", "cancelled"): 1}, 0, 0)


async def test_a_client_that_leaves_with_the_whole_answer_has_got_it(front: Front) -> None:
    """By its length it knows that sooner than the gateway hears from the replica that it is all."""
    sent, has_all = bytearray(), asyncio.Event()
    body = json.dumps({**BODY, "messages": [{"role": "user", "content": "is all"}]}).encode()
    incoming: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        await has_all.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.extend(message.get("body", b""))
        if len(sent) == 4:
            has_all.set()

    headers = [(b"content-type", b"application/json")]
    path = {"path": "/v1/chat/completions", "query_string": b""}
    scope = {"type": "http", "method": "POST", "headers": headers, **path}
    async with asyncio.timeout(10):
        await (await front.answer(Request(scope, receive)))(scope, receive, send)
    assert counted(front) == ({("chat", "ok"): 1}, 1, 0)

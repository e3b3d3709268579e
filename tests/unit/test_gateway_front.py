"""What clients get of a gateway: methods, encodings, and errors in the shape of their API."""

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from services.config import load_config
from services.errors import error_event, is_error_event, reshaped
from services.gateway.deployment import broken, in_time
from services.gateway.errors import Refusal
from services.gateway.front import Front
from services.gateway.settings import gateway_settings
from services.messages import GatewayNews
from services.relayed import Head, Part, RelayedRequest

JSON = {"Content-Type": "application/json"}
MESSAGES = "/v1/messages"
BAD = b'{"error": {"message": "no such field", "type": "Bad Request", "code": 400}}'


async def ask(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
    """The replica, which finds every body wrong."""
    body = json.dumps({"method": request.method}).encode()
    if request.method == "POST":
        body = BAD
    length = str(len(body)).encode()
    yield Head(400 if body is BAD else 200, ((b"content-length", length),))
    yield Part(body[:10])
    yield Part(body[10:])


@pytest.fixture
def front() -> Front:
    front = Front(gateway_settings(load_config(None, {"model.path": "m"})), ask, {})
    front.hear(GatewayNews(engines=1), 0.0)
    return front


@pytest.fixture
def client(front: Front) -> httpx.AsyncClient:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await front.answer(Request(scope, receive))
        await response(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_head_asks_for_the_head_of_get(client: httpx.AsyncClient) -> None:
    answer = await client.head("/v1/models")
    assert answer.status_code == 200
    assert (await client.get("/v1/models")).json() == {"method": "GET"}
    assert (await client.head("/v1/messages")).status_code == 405


async def test_an_answer_keeps_its_length(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models")
    assert answer.headers["content-length"] == str(len(answer.content))


async def test_a_packed_body_is_refused_by_name(client: httpx.AsyncClient) -> None:
    for encoding, status in (("gzip", 415), ("br, gzip", 415), ("identity", 400), ("", 400)):
        headers = {**JSON, "Content-Encoding": encoding}
        answer = await client.post("/v1/completions", content=b"x", headers=headers)
        assert answer.status_code == status
        assert ("Content-Encoding" in answer.json()["error"]["message"]) is (status == 415)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}", "no such field"), (b"{", "not JSON"), (b"[]", "send an object")],
    ids=["of vLLM's routes", "of the gateway", "of the gateway, too"],
)
@pytest.mark.parametrize("path", [MESSAGES, "/v1/messages/count_tokens"])
async def test_messages_errors_are_in_anthropics_shape(
    client: httpx.AsyncClient, path: str, content: bytes, message: str
) -> None:
    answer = await client.post(path, content=content, headers=JSON)
    assert (answer.status_code, set(answer.json())) == (400, {"type", "error"})
    assert answer.json()["type"] == "error"
    assert set(answer.json()["error"]) == {"type", "message"}
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert message in answer.json()["error"]["message"]


async def test_other_errors_are_in_openais_shape(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", content=b"{}", headers=JSON)
    assert answer.content == BAD
    answer = await client.post("/v1/completions", content=b"{", headers=JSON)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_long_path_is_not_repeated(client: httpx.AsyncClient) -> None:
    answer = await client.get("/" + "a" * 5000)
    assert answer.status_code == 404
    assert len(answer.content) < 400


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "authentication_error"), (429, "rate_limit_error"), (503, "overloaded_error"),
     (502, "api_error"), (504, "timeout_error"), (413, "request_too_large")],
)  # fmt: skip
def test_anthropics_types_of_errors(status: int, kind: str) -> None:
    body = Refusal(status, "no").response(MESSAGES).body
    assert json.loads(bytes(body)) == {"type": "error", "error": {"type": kind, "message": "no"}}


def test_error_events_are_known_as_such() -> None:
    for path in (MESSAGES, "/v1/completions"):
        assert is_error_event(error_event(503, "no", path=path))
    assert error_event(503, "no", path=MESSAGES).startswith(b"event: error\ndata: ")
    assert not is_error_event(b'data: {"choices"')


def test_what_is_no_error_of_vllm_stays() -> None:
    assert reshaped(500, b"Internal Server Error", MESSAGES) == b"Internal Server Error"


async def test_who_does_not_answer_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    async def away() -> None:
        raise OSError("gone")

    with pytest.raises(Refusal) as refusal:
        await in_time(away(), "controller")
    assert (refusal.value.status, refusal.value.headers["retry-after"]) == (503, "5")
    assert await in_time(asyncio.sleep(0, 7), "controller") == 7
    answer = await broken(Request({"type": "http", "path": "/ready"}), OSError("secret"))
    assert answer.status_code == 500
    assert b"secret" not in bytes(answer.body)


async def test_who_would_be_refused_need_not_send_a_body(
    front: Front, client: httpx.AsyncClient
) -> None:
    read = []

    async def body() -> AsyncGenerator[bytes, None]:
        read.append(1)
        yield b""

    front.admission.is_closing = True
    answer = await client.post("/v1/completions", content=body(), headers=JSON)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert read == []


async def test_models_are_listed_while_no_engine_takes_a_request(
    front: Front, client: httpx.AsyncClient
) -> None:
    front.admission.max_running = 0
    front.admission._pace.took(60.0)
    assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 503
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 400, (
        "by the replica"
    )
    news = GatewayNews(engines=1, is_closing=True)
    front.hear(news, 1.0)
    assert (await client.get("/v1/models")).status_code == 503


async def test_a_gateway_is_quiet_while_no_request_comes_and_none_runs(
    front: Front, client: httpx.AsyncClient
) -> None:
    before, running = front.meter.n_requests
    assert (before, running) == (0, 0)
    assert front.is_quiet_since(before)
    await client.post("/v1/completions", json={"model": "m", "prompt": "Hello"})
    assert not front.is_quiet_since(before)
    assert front.is_quiet_since(front.meter.n_requests[0])
    front.hear(GatewayNews(problem="no engine is up"), 1.0)
    assert not front.is_quiet_since(front.meter.n_requests[0])

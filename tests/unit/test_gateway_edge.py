"""What stands around Serve's proxy: second attempts, ends that say so, and headers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from services.gateway.body import ALONG
from services.gateway.edge import Edge, cleaned, middlewares
from services.gateway.passing import MAX_ALONG_BYTES, MAX_KEPT_BYTES, Headers

Attempt = Callable[[Receive, Send], Awaitable[None]]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
BODY = [b'{"prompt": ', b'"Hello"}']


class Proxy:
    """Serve's: each attempt in turn; it swallows what a gateway dies of, and returns."""

    def __init__(self, *attempts: Attempt) -> None:
        self.attempts = list(attempts)
        self.along: list[bytes | None] = []
        self.seen: list[bytes] = []
        self.headers: Headers = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = scope["headers"]
        self.along.append(scope.get(ALONG))
        attempt = self.attempts.pop(0)

        async def recording() -> Message:
            message = await receive()
            self.seen.append(message.get("body", message["type"].encode()))
            return message

        await attempt(recording, send)


async def dies(receive: Receive, send: Send) -> None:
    await receive()


async def dies_after_the_body(receive: Receive, send: Send) -> None:
    await receive()
    await receive()


async def dies_after_the_head(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": STREAM})


async def dies_in_the_stream(receive: Receive, send: Send) -> None:
    await dies_after_the_head(receive, send)
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})


async def dies_in_a_document(receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})


async def answers(receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"well"})


async def says_no_and_no_more(receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 405, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve_knows_no_application(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"Path '/v1/x' not found."})


async def ask(
    proxy: Proxy, *, path: str = "/v1/completions", pieces: list[bytes] = BODY, **scope: Any
) -> list[Message]:
    """What the client gets."""
    incoming: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]}
        for piece in pieces
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asked = {"type": "http", "method": "POST", "path": path, "headers": [], **scope}
    await Edge(proxy)(asked, receive, send)
    return sent


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("death", [dies, dies_after_the_body, dies_after_the_head])
async def test_a_request_whose_gateway_died_before_a_byte_is_sent_again(death: Attempt) -> None:
    proxy = Proxy(death, answers)
    sent = await ask(proxy)
    assert (sent[0]["status"], body_of(sent)) == (201, b"well")
    assert b"".join(proxy.seen[-2:]) == b"".join(BODY), "the second attempt saw the whole body"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/completions", "bad_gateway"), ("/v1/messages", "api_error")],
)
async def test_after_a_second_death_it_ends_with_an_error(path: str, kind: str) -> None:
    sent = await ask(Proxy(dies, dies, answers), path=path)
    assert sent[0]["status"] == 502
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert json.loads(body_of(sent))["error"]["type"] == kind


@pytest.mark.parametrize(
    ("pieces", "goes_along"),
    [
        ([b"{}"], True),
        ([b""], True),
        (BODY, False),
        ([bytes(MAX_ALONG_BYTES)], True),
        ([bytes(MAX_ALONG_BYTES + 1)], False),
    ],
)
async def test_a_small_body_that_is_there_goes_along_with_each_attempt(
    pieces: list[bytes], *, goes_along: bool
) -> None:
    proxy = Proxy(dies, answers)
    sent = await ask(proxy, pieces=pieces)
    assert (sent[0]["status"], body_of(sent)) == (201, b"well")
    assert proxy.along == [b"".join(pieces) if goes_along else None] * 2
    assert b"".join(proxy.seen[-len(pieces) :]) == b"".join(pieces), "and comes as ever"


async def test_a_body_that_is_late_is_not_waited_for() -> None:
    proxy, has_begun, late = Proxy(answers), asyncio.Event(), [b"late"]

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun.set()
        await proxy(scope, receive, send)

    async def receive() -> Message:
        await has_begun.wait()
        return {"type": "http.request", "body": late.pop()}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    async with asyncio.timeout(10):
        await Edge(serve)(scope, receive, send)
    assert (proxy.along, proxy.seen) == ([None], [b"late"])


async def test_an_answer_names_the_request() -> None:
    sent = await ask(Proxy(dies, dies), headers=[(b"x-request-id", b"mine")])
    assert (b"x-request-id", b"mine") in sent[0]["headers"]
    sent = await ask(Proxy(answers), path="/v1/messages", headers=[(b"x-request-id", b"mine")])
    assert sent[0]["headers"] == [(b"request-id", b"mine")], "as Anthropic's clients read it"


async def test_what_serve_says_itself_is_said_in_the_clients_shape() -> None:
    proxy = Proxy(serve_knows_no_application, answers)
    sent = await ask(proxy)
    assert (sent[0]["status"], len(proxy.attempts)) == (503, 1)
    assert (b"retry-after", b"5") in sent[0]["headers"]
    assert "not ready" in json.loads(body_of(sent))["error"]["message"]
    sent = await ask(Proxy(serve_knows_no_application), path="/-/healthz")
    assert body_of(sent) == b"Path '/v1/x' not found."


async def test_a_stream_that_had_begun_ends_with_an_error_event() -> None:
    sent = await ask(Proxy(dies_in_the_stream, answers))
    first, last, _ = body_of(sent).split(b"\n\n")
    assert first == b"data: 1"
    assert "died" in json.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert sent[-1]["more_body"] is False
    theirs = body_of(await ask(Proxy(dies_in_the_stream), path="/v1/messages"))
    assert b"event: error\ndata: " in theirs


async def test_a_document_that_had_begun_is_cut_off() -> None:
    sent = await ask(Proxy(dies_in_a_document, answers))
    assert body_of(sent) == b"{"
    assert sent[-1]["more_body"] is True, "the server then closes the connection"


async def test_a_body_too_large_to_keep_is_not_sent_again() -> None:
    pieces = [b"x" * MAX_KEPT_BYTES, b"x"]
    sent = await ask(Proxy(dies_after_the_body, answers), pieces=pieces)
    assert sent[0]["status"] == 502


async def test_nobody_is_asked_again_for_a_client_that_left() -> None:
    async def is_left(receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    proxy = Proxy(is_left, answers)
    assert await ask(proxy) == []
    assert len(proxy.attempts) == 1


async def test_an_answer_without_a_body_is_an_answer() -> None:
    sent = await ask(Proxy(says_no_and_no_more))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 405


async def test_other_connections_pass() -> None:
    proxy = Proxy(says_no_and_no_more)
    assert len(await ask(proxy, type="websocket")) == 2


@pytest.mark.parametrize(
    "name",
    [
        b"serve_multiplexed_model_id",
        b"Serve-Multiplexed-Model-Id",
        b"x-session-id",
        b"x_session_id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"X-ExpertMesh-Stream",
        b"X-ExpertMesh-Begun",
    ],
)
async def test_clients_cannot_steer_the_proxy(name: bytes) -> None:
    proxy = Proxy(answers)
    await ask(proxy, headers=[(name, b"\xff"), (b"x-request-timeout", b"3")])
    assert [one for one in proxy.headers if one[0] != b"x-request-id"] == [
        (b"x-request-timeout", b"3")
    ]


@pytest.mark.parametrize(
    ("ids", "is_kept"),
    [([b"my-id.1"], True), ([b"a" * 129], False), ([b"\xff"], False), ([b"a", b"b"], False)],
)
def test_a_request_id_is_kept_if_it_can_stand_in_a_log(ids: list[bytes], is_kept: bool) -> None:
    [(name, value)] = cleaned([(b"x-request-id", one) for one in ids])
    assert name == b"x-request-id"
    assert (value == ids[0]) is is_kept
    assert len(cleaned([])[0][1]) == 32


def test_serve_is_given_one_middleware() -> None:
    [only] = middlewares()
    assert isinstance(only.cls(Proxy()), Edge)  # type: ignore[call-arg]

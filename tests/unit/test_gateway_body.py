"""Which bodies are refused before any route sees them."""

import json

import pytest
from starlette.requests import Request
from starlette.types import Message

from services.gateway.body import ALONG, MAX_DEPTH, parse_body, read_body
from services.gateway.errors import Refusal


def parse(body: bytes) -> object:
    return parse_body(body, max_n=4, max_output_tokens=100)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": "Grüße 😀"}], "n": 4},
        {"prompt": [[1, 2], [3]], "n": 2, "max_tokens": 100, "seed": 2**63 - 1},
        {"prompt": list(range(10_000))},
        {"response_format": {"json_schema": {"schema": {"type": "string", "maxLength": 4096}}}},
        {"structured_outputs": {"regex": r"[a-z]{1,20}( [a-z]{1,20}){0,9}"}},
    ],
)
def test_ordinary_bodies_pass(body: dict[str, object]) -> None:
    assert parse(json.dumps(body).encode()) == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "a JSON list; send an object"),
        (b"\xff{}", "not UTF-8: byte 0"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 9223372036854775808}', "the limit is 2^63 - 1"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "the limit is 2^63 - 1"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "nested too deeply"),
        (b'{"n": 5}', "n is 5, for 1 prompts; the limit is 4"),
        (b'{"n": 2, "prompt": ["a", "b", "c"]}', "n is 2, for 3 prompts"),
        (b'{"prompt": ["a", "b", "c", "d", "e"]}', "5 prompts; the limit is 4"),
        (b'{"messages": [{"role": "alien"}]}', "messages[0].role is 'alien'; known are: system"),
        (b'{"max_tokens": 101}', "max_tokens is 101; the limit is 100"),
        (b'{"structured_outputs": {"regex": "(a{1,1000}){1,1000}"}}', "1000000 repetitions"),
        (b'{"structured_outputs": {"regex": "a{99999999999999}"}}', "repetitions"),
        (b'{"response_format": {"schema": {"maxItems": 100000}}}', "100000 repetitions"),
        (b'{"tools": [' + b"{}, " * 128 + b"{}]}", "129 tools; the limit is 128"),
        (b'{"tools": [{"x": "' + b"y" * 20_000 + b'"}]}', "tools[0] has 20"),
    ],
)
def test_harmful_bodies_are_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse(body)
    assert refusal.value.status == 400
    assert message in refusal.value.message


async def test_a_body_that_came_with_the_request_is_taken_as_it_is_and_has_the_same_limit() -> None:
    asked: list[None] = []

    async def receive() -> Message:
        asked.append(None)
        return {"type": "http.request", "body": b"other"}

    request = Request({"type": "http", "headers": [], ALONG: b"along"}, receive)
    assert await read_body(request, max_bytes=5, timeout_s=1.0) == b"along"
    with pytest.raises(Refusal, match="larger than 4 bytes"):
        await read_body(request, max_bytes=4, timeout_s=1.0)
    assert not asked

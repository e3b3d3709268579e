"""Fussy clients of the running application: tools on every API, sampling fields, and the wire."""

import asyncio
import json
import socket
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.cluster.conftest import MODEL, ROOT, Application

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"name": "weather", "parameters": CITY, "strict": True}
THEIRS = {"name": "weather", "input_schema": CITY, "strict": True}


def city(arguments: str) -> str:
    """What a call asks for, if it is of the schema."""
    return str(json.loads(arguments)["city"])


@pytest.fixture
async def client(application: Application) -> Any:
    async with openai.AsyncOpenAI(
        base_url=f"{application.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


@pytest.fixture
async def anthropic_client(application: Application) -> Any:
    async with anthropic.AsyncAnthropic(
        base_url=application.url, api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


async def test_tools_are_called_on_every_api(client: Any, anthropic_client: Any) -> None:
    async def chat() -> str:
        answer = await client.chat.completions.create(
            model=MODEL, messages=WEATHER, temperature=0, max_tokens=60,
            tools=[{"type": "function", "function": TOOL}], tool_choice="required",
        )  # fmt: skip
        [call] = answer.choices[0].message.tool_calls
        return city(call.function.arguments)

    async def streamed_chat() -> str:
        chunks = await client.chat.completions.create(
            model=MODEL, messages=WEATHER, temperature=0, max_tokens=60, stream=True,
            tools=[{"type": "function", "function": TOOL}],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )  # fmt: skip
        deltas = [chunk.choices[0].delta async for chunk in chunks if chunk.choices]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        return city("".join(call.function.arguments or "" for call in calls))

    async def responses() -> str:
        answer = await client.responses.create(
            model=MODEL, input=WEATHER, max_output_tokens=60, temperature=0,
            tools=[{"type": "function", **TOOL}], tool_choice="required",
        )  # fmt: skip
        [call] = [item for item in answer.output if item.type == "function_call"]
        return city(call.arguments)

    async def messages() -> str:
        answer = await anthropic_client.messages.create(
            model=MODEL, messages=WEATHER, max_tokens=60, tools=[THEIRS],
            tool_choice={"type": "tool", "name": "weather"},
        )  # fmt: skip
        [call] = [block for block in answer.content if block.type == "tool_use"]
        assert answer.stop_reason == "tool_use"
        return str(call.input["city"])

    async def streamed_messages() -> str:
        async with anthropic_client.messages.stream(
            model=MODEL, messages=WEATHER, max_tokens=60, tools=[THEIRS],
            tool_choice={"type": "any"},
        ) as stream:  # fmt: skip
            answer = await stream.get_final_message()
        [call] = [block for block in answer.content if block.type == "tool_use"]
        return str(call.input["city"])

    asked = await asyncio.gather(
        chat(), streamed_chat(), responses(), messages(), streamed_messages()
    )
    assert set(asked) <= {"Paris", "Rome"}


async def test_results_of_tools_and_systems_words_are_read(
    client: Any, anthropic_client: Any
) -> None:
    answer, theirs, formatted = await asyncio.gather(
        client.chat.completions.create(
            model=MODEL, temperature=0, max_tokens=12,
            messages=[
                *WEATHER,
                {"role": "assistant", "tool_calls": [
                    {"id": "c", "type": "function", "function": {
                        "name": "weather", "arguments": '{"city": "Paris"}'}}]},
                {"role": "tool", "tool_call_id": "c", "content": "sunny"},
            ],
        ),
        anthropic_client.messages.create(
            model=MODEL, max_tokens=12, system="Be brief.",
            messages=[
                *WEATHER,
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "t", "name": "weather",
                     "input": {"city": "Paris"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
            ],
        ),
        client.responses.create(
            model=MODEL, input=WEATHER, max_output_tokens=40, temperature=0,
            text={"format": {"type": "json_schema", "name": "w", "schema": CITY, "strict": True}},
        ),
    )  # fmt: skip
    assert "sunny" in answer.choices[0].message.content
    assert "sunny" in theirs.content[0].text
    assert city(formatted.output_text) in ("Paris", "Rome")


async def test_sampling_fields_are_heeded(client: Any) -> None:
    async def said(**options: Any) -> Any:
        return await client.completions.create(
            model=MODEL, prompt="1 1 1 1", **{"max_tokens": 8, "temperature": 0, **options}
        )

    async def choices_of_a_stream() -> set[int]:
        chunks = await said(n=3, temperature=1, stream=True, max_tokens=4)
        return {chunk.choices[0].index async for chunk in chunks if chunk.choices}

    plain, penal, endless, indices = await asyncio.gather(
        said(),
        said(presence_penalty=2, frequency_penalty=2, extra_body={"repetition_penalty": 2.0}),
        said(max_tokens=24, extra_body={"ignore_eos": True}),
        choices_of_a_stream(),
    )
    assert plain.choices[0].text != penal.choices[0].text
    assert endless.usage.completion_tokens == 24
    assert indices == {0, 1, 2}


async def test_anthropics_client_reads_every_error(anthropic_client: Any) -> None:
    for change, kind, name in (
        ({"model": "none"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": -1}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": [{"role": "alien", "content": "?"}]}, anthropic.BadRequestError,
         "invalid_request_error"),
    ):  # fmt: skip
        refused: Any
        with pytest.raises(kind) as refused:
            await anthropic_client.messages.create(
                **{"model": MODEL, "max_tokens": 4, "messages": WEATHER, **change}
            )
        assert refused.value.body["type"] == "error"
        assert refused.value.body["error"]["type"] == name


def test_the_models_say_nothing_of_the_host(application: Application) -> None:
    with httpx.Client(base_url=application.url) as client:
        listed = client.get("/v1/models")
        assert listed.json()["data"][0]["root"] == MODEL
        assert str(ROOT) not in listed.text + client.get(f"/v1/models/{MODEL}").text
        head = client.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")


def test_headers_do_not_reach_serves_proxy(application: Application) -> None:
    with httpx.Client(base_url=application.url) as client:
        mine = client.get("/health", headers={"x-request-id": "my-id"})
        assert mine.headers.get_list("x-request-id") == ["my-id"]
        for headers in (
            {b"x-request-id": b"\xff\xfe"},
            {b"serve_multiplexed_model_id": b"\xff"},
            {b"x-request-timeout-seconds": b"0.000001"},
            {b"x-request-disconnect-disabled": b"\xff"},
        ):
            answer = client.get("/v1/models", headers=list(headers.items()))
            assert answer.status_code == 200, headers
            assert len(answer.headers["x-request-id"]) == 32


def test_what_is_no_request_of_ours_is_refused(application: Application) -> None:
    host, port = application.url.removeprefix("http://").split(":")
    body = b'{"model": "x", "prompt": "x"}'
    post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    post += b"Content-Type: application/json\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for status, sent in (
        (b"404", b"GET /v1/%2e%2e/admin/status HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"404", b"GET //admin/status HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"404", b"GET /%2561dmin/status HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"405", b"OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"405", b"TRACE /health HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"415", post + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"),
        (b"100", post + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}"),
        (b"404", post + b"Transfer-Encoding: chunked\r\n\r\n" + chunk),
        (b"400", post + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk),
        (b"400", post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        (b"403", b"GET /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                 b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                 b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
    ):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(sent)
            assert connection.recv(4096)[9:12] == status, sent

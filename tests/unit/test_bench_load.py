"""The load client against answers as servers send them, good and bad."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from deploy.bench.load import Stream, closed_loop, open_client, percentile, stream_one

URL = "http://server:1"


class Pieces(httpx.AsyncByteStream):
    """Sends its parts one after the other, and raises those that are exceptions."""

    def __init__(self, *parts: str | Exception) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            await asyncio.sleep(0)
            if isinstance(part, Exception):
                raise part
            yield part.encode()


def event(content: dict[str, Any] | str) -> str:
    return f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n"


def text(piece: str, **more: Any) -> str:
    return event({"choices": [{"index": 0, "text": piece, **more}]})


def usage(tokens: int) -> str:
    return event({"choices": [], "usage": {"completion_tokens": tokens}})


DONE = event("[DONE]")
THREE_TOKENS = (text("a"), text("b"), text("c"), usage(3), DONE)


def answers(*parts: str | Exception) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(200, stream=Pieces(*parts)))


async def ask(transport: httpx.MockTransport, max_tokens: int = 3, **more: Any) -> Stream:
    async with open_client(URL, clients=1, transport=transport) as client:
        return await stream_one(client, model="m", prompt="p", max_tokens=max_tokens, **more)


async def test_a_stream_has_text_tokens_and_a_time_for_each_chunk() -> None:
    stream = await ask(answers(*THREE_TOKENS))
    assert (stream.prompt, stream.text, stream.tokens, stream.error) == ("p", "abc", 3, "")
    assert not stream.failed
    assert len(stream.arrivals_s) == 3
    assert len(stream.gaps_s) == 2
    assert stream.ttft_s >= 0


async def test_chunks_may_be_cut_anywhere() -> None:
    whole = "".join(THREE_TOKENS)
    stream = await ask(answers(whole[:10], whole[10:11], whole[11:]))
    assert (stream.text, stream.tokens, stream.failed) == ("abc", 3, False)


async def test_a_token_without_text_yet_has_arrived_and_an_empty_chunk_has_not() -> None:
    parts = (text(""), text("", token_ids=[5]), text("é", token_ids=[6]), usage(2), DONE)
    stream = await ask(answers(*parts), max_tokens=2)
    assert (len(stream.arrivals_s), stream.text, stream.failed) == (2, "é", False)


async def test_a_server_that_does_not_count_is_counted_for() -> None:
    stream = await ask(answers(text("a"), text("b"), DONE), max_tokens=2)
    assert (stream.tokens, stream.failed) == (2, False)


async def test_the_request_is_greedy_and_of_fixed_length() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == f"{URL}/v1/completions"
        bodies.append(json.loads(request.content))
        return httpx.Response(200, stream=Pieces(*THREE_TOKENS))

    await ask(httpx.MockTransport(answer), logit_bias={"7": 5.0})
    [body] = bodies
    assert (body["temperature"], body["ignore_eos"], body["stream"]) == (0, True, True)
    assert (body["max_tokens"], body["logit_bias"]) == (3, {"7": 5.0})


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((text("a"), usage(1), DONE), "only 1 of 3 tokens came"),
        ((text("a"), text("b")), "the stream ended without [DONE] after 2 chunks"),
        ((text("a"), event({"error": {"message": "lost"}}), DONE), "error event: {"),
        ((text("a"), httpx.ReadError("reset")), "ReadError: reset"),
        ((text("a"), httpx.RemoteProtocolError("cut off")), "RemoteProtocolError: cut off"),
        ((event("{broken"),), "a chunk was not understood: JSONDecodeError"),
        ((event("[]"),), "a chunk was not understood: "),
    ],
)
async def test_a_stream_that_is_not_complete_says_why(
    parts: tuple[str | Exception, ...], error: str
) -> None:
    stream = await ask(answers(*parts))
    assert stream.failed
    assert stream.error.startswith(error)


async def test_text_that_came_before_the_error_is_kept() -> None:
    stream = await ask(answers(text("a"), text("b"), httpx.ReadError("reset")))
    assert (stream.text, stream.tokens, len(stream.arrivals_s)) == ("ab", 2, 2)


async def test_a_refusal_is_told_with_status_and_body() -> None:
    refuse = httpx.MockTransport(lambda request: httpx.Response(503, text="no shard"))
    stream = await ask(refuse)
    assert (stream.error, stream.tokens) == ("status 503: no shard", 0)
    assert math.isnan(stream.ttft_s)
    assert stream.longest_gap_s == 0.0


async def test_a_server_that_is_not_there_is_told() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert (await ask(httpx.MockTransport(refuse))).error == "ConnectError: refused"


def test_gaps_are_between_chunks() -> None:
    stream = Stream("p", "abc", 3, started_s=1.0, arrivals_s=(1.5, 1.75, 3.75), error="")
    assert (stream.ttft_s, stream.gaps_s, stream.longest_gap_s) == (0.5, (0.25, 2.0), 2.0)


@pytest.fixture
def busy() -> tuple[httpx.MockTransport, list[str], list[int]]:
    """Answers rightly; notes the prompts in order, and how many were under way at once."""
    prompts: list[str] = []
    under_way = [0, 0]

    async def answer(request: httpx.Request) -> httpx.Response:
        prompts.append(json.loads(request.content)["prompt"])
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0)
        under_way[0] -= 1
        return httpx.Response(200, stream=Pieces(*THREE_TOKENS))

    return httpx.MockTransport(answer), prompts, under_way


Busy = tuple[httpx.MockTransport, list[str], list[int]]


async def test_closed_loop_sends_each_prompt_in_turn_until_the_number_is_reached(
    busy: Busy,
) -> None:
    transport, prompts, under_way = busy
    streams = await closed_loop(
        f"{URL}/v1",
        model="m",
        prompts=["x", "y", "z"],
        clients=2,
        max_tokens=3,
        requests=7,
        transport=transport,
    )
    assert prompts == ["x", "y", "z", "x", "y", "z", "x"]
    assert len(streams) == 7 and not any(stream.failed for stream in streams)
    assert under_way[1] == 2


async def test_closed_loop_lets_what_has_begun_finish_when_it_is_stopped(busy: Busy) -> None:
    transport, prompts, _ = busy
    stop = asyncio.Event()

    async def stop_soon() -> None:
        while len(prompts) < 5:
            await asyncio.sleep(0)
        stop.set()

    load = closed_loop(
        URL, model="m", prompts=["x"], clients=3, max_tokens=3, stop=stop, transport=transport
    )
    streams, _ = await asyncio.gather(load, stop_soon())
    assert len(streams) == len(prompts) >= 5
    assert not any(stream.failed for stream in streams)


async def test_closed_loop_ends_when_its_time_is_over(busy: Busy) -> None:
    streams = await closed_loop(
        URL, model="m", prompts=["x"], clients=2, max_tokens=3, seconds=0.0, transport=busy[0]
    )
    assert streams == []


async def test_closed_loop_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.bench.load.PAUSE_AFTER_ERROR_S", 0.0)
    codes = iter([503, 200, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(codes), stream=Pieces(*THREE_TOKENS))

    streams = await closed_loop(
        URL,
        model="m",
        prompts=[[1, 2]],
        clients=1,
        max_tokens=3,
        requests=3,
        transport=httpx.MockTransport(answer),
    )
    assert [stream.failed for stream in streams] == [True, False, False]
    assert streams[0].prompt == "[1, 2]"


@pytest.mark.parametrize(("q", "expected"), [(0, 1.0), (50, 2.5), (99, 3.97), (100, 4.0)])
def test_percentile_is_interpolated(q: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(expected)


def test_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 50))

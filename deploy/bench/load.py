"""Streaming load on an OpenAI-compatible API, with the moment at which every piece of text arrived.

Sampling is greedy and never ends early, so that each request is the same work each time. What is
made of the streams is for `deploy.bench.report` and its siblings to say.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from deploy.bench.events import MAX_ERROR_CHARS, Answer

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 300.0  # between two chunks; a step may wait for a lost expert for a minute
PAUSE_AFTER_ERROR_S = 0.2  # a server that refuses at once is not asked thousands of times

Prompt = str | list[int]
PROMPTS = tuple(f"{n}. Once upon a time there was" for n in range(16))


@dataclass(frozen=True, slots=True)
class Stream:
    """One request and what came of it. Times are of the monotonic clock."""

    prompt: str  # token ids, if it was given as such, are written as JSON
    text: str
    tokens: int  # generated, by the server's own account if it gave one
    started_s: float
    arrivals_s: tuple[float, ...]  # one for each chunk with text
    error: str  # why it is not complete; empty if it is

    @property
    def failed(self) -> bool:
        """Whether anything at all was wrong, fewer tokens than asked for included."""
        return bool(self.error)

    @property
    def ttft_s(self) -> float:
        """From the request to its first text; nan if there was none."""
        return self.arrivals_s[0] - self.started_s if self.arrivals_s else math.nan

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between each chunk and the next one."""
        return tuple(float(gap) for gap in np.diff(self.arrivals_s))

    @property
    def longest_gap_s(self) -> float:
        """0 if there were fewer than two chunks."""
        return max(self.gaps_s, default=0.0)


@asynccontextmanager
async def open_client(
    url: str, *, clients: int, key: str = "", transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that keeps one connection for each of `clients`.

    url: of the server, http://host:port, with or without /v1. key: of its API, if it asks for one.
    """
    async with httpx.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers={"Authorization": f"Bearer {key}"} if key else None,
        transport=transport,
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=clients, max_keepalive_connections=clients),
        trust_env=False,
    ) as client:
        yield client


async def stream_one(
    client: httpx.AsyncClient,
    *,
    model: str,
    prompt: Prompt,
    max_tokens: int,
    logit_bias: Mapping[str, float] | None = None,
) -> Stream:
    """Ask for `max_tokens` greedy tokens; trouble of server or network is told in `error`."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if logit_bias is not None:
        body["logit_bias"] = dict(logit_bias)
    answer, started_s = Answer(), time.monotonic()
    try:
        await _read(client, body, answer)
    except (httpx.HTTPError, httpx.StreamError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        answer.error = f"a chunk was not understood: {error!r}"
    return Stream(
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt),
        text="".join(answer.pieces),
        tokens=answer.counted,
        started_s=started_s,
        arrivals_s=tuple(answer.arrivals_s),
        error=answer.problem(max_tokens),
    )


async def _read(client: httpx.AsyncClient, body: Mapping[str, Any], answer: Answer) -> None:
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            text = (await response.aread()).decode(errors="replace")
            answer.error = f"status {response.status_code}: {text[:MAX_ERROR_CHARS]}"
            return
        async for line in response.aiter_lines():
            answer.add(line)


async def send_at_rate(
    client: httpx.AsyncClient, *, model: str, max_tokens: int, rate: float, seconds: float
) -> list[asyncio.Task[Stream]]:
    """Begin a request every 1 / rate seconds, `PROMPTS` in turn, and wait for none."""
    sent: list[asyncio.Task[Stream]] = []
    began_s = time.monotonic()
    while (due_s := len(sent) / rate if rate else seconds) < seconds:
        await asyncio.sleep(max(0.0, began_s + due_s - time.monotonic()))
        prompt = PROMPTS[len(sent) % len(PROMPTS)]
        asked = stream_one(client, model=model, prompt=prompt, max_tokens=max_tokens)
        sent.append(asyncio.create_task(asked))
    await asyncio.sleep(max(0.0, began_s + seconds - time.monotonic()))
    return sent


async def closed_loop(
    url: str,
    *,
    model: str,
    prompts: Sequence[Prompt],
    clients: int,
    max_tokens: int,
    stop: asyncio.Event | None = None,
    requests: int | None = None,
    seconds: float | None = None,
    logit_bias: Mapping[str, float] | None = None,
    key: str = "",
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[Stream]:
    """Keep `clients` requests under way until `stop`, `requests` or `seconds`, whichever is first.

    Prompts are taken in turn, over and over. What has begun when it ends is let to finish.
    requests: to be sent in all. seconds: after which none is sent. Returns every stream, in the
    order of their ends.
    """
    assert stop is not None or requests is not None or seconds is not None, "it would never end"
    end_s = math.inf if seconds is None else time.monotonic() + seconds
    streams: list[Stream] = []
    sent = 0

    def goes_on() -> bool:
        is_stopped = stop is not None and stop.is_set()
        return not is_stopped and (requests is None or sent < requests) and time.monotonic() < end_s

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal sent
        while goes_on():
            prompt, sent = prompts[sent % len(prompts)], sent + 1
            stream = await stream_one(
                client, model=model, prompt=prompt, max_tokens=max_tokens, logit_bias=logit_bias
            )
            streams.append(stream)
            if stream.failed:
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async with open_client(url, clients=clients, key=key, transport=transport) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return streams


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile, 0 to 100, interpolated; nan of nothing."""
    return float(np.percentile(values, q)) if len(values) else math.nan

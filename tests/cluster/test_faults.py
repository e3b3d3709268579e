"""Real processes die under load, and nobody who waits for an answer notices more than a pause."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import openai
import pytest

from tests.cluster.conftest import MODEL, Application

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLIENTS = 6
TOKENS = 120
REPAIR_TIMEOUT_S = 240.0  # a new shard imports vLLM, on a busy machine


@dataclass
class Stream:
    """One client's stream: what came, and the longest pause."""

    text: str = ""
    chunks: int = 0
    longest_pause_s: float = 0.0


async def read(client: openai.AsyncOpenAI, prompt: str) -> Stream:
    seen, last_s = Stream(), time.monotonic()
    stream = await client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        now_s = time.monotonic()
        if seen.chunks:
            seen.longest_pause_s = max(seen.longest_pause_s, now_s - last_s)
        last_s = now_s
        seen.chunks += 1
        seen.text += chunk.choices[0].text
    return seen


async def load(url: str, strike: "asyncio.Future[None] | None" = None) -> list[Stream]:
    """Six streams at once; `strike` is awaited while they run."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=240
    ) as client:
        prompts = [f"Story {i}. Once upon a time" for i in range(CLIENTS)]
        streams = [asyncio.create_task(read(client, prompt)) for prompt in prompts]
        if strike is not None:
            await strike
        return await asyncio.gather(*streams)


def test_a_killed_shard_fails_no_request_and_is_replaced(application: Application) -> None:
    calm = asyncio.run(load(application.url))
    shards = application.status()["controller"]["shards"]
    victim = int(shards[0]["shard_id"].split("-")[0])

    async def strike() -> None:
        await asyncio.sleep(1.5)
        os.kill(victim, signal.SIGKILL)

    async def struck() -> list[Stream]:
        return await load(application.url, asyncio.ensure_future(strike()))

    streams = asyncio.run(struck())
    assert all(s.chunks >= TOKENS - 1 for s in streams), "a stream ended early"
    same = sum(s.text == c.text for s, c in zip(streams, calm, strict=True))
    pause_s = max(s.longest_pause_s for s in streams)
    print(f"killed under load: {same} of {CLIENTS} texts the same, longest pause {pause_s:.2f} s")
    assert pause_s < 10, "a dead shard is noticed by its connection, not by waiting"
    wait_until_redundant(application, victim)


def wait_until_redundant(application: Application, victim: int) -> None:
    """Serve starts a new shard, the controller fills it; nobody does anything."""
    end_s = time.monotonic() + REPAIR_TIMEOUT_S
    while True:
        seen = application.status()["controller"]
        alive = [s for s in seen["shards"] if not s["shard_id"].startswith(f"{victim}-")]
        if seen["complete"] and seen["redundancy"] == 2 and len(alive) == 2:
            return
        assert time.monotonic() < end_s, seen
        time.sleep(2)

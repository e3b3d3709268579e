"""Real processes die under load, and nobody who waits for an answer notices more than a pause."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import openai
import psutil
import pytest

from tests.cluster.conftest import MODEL, NAME, Application

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

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


def strike_under_load(application: Application, *signals: tuple[float, int, signal.Signals]) -> Any:
    """Streams, undisturbed and then with signals: (seconds to wait first, process, signal)."""
    calm = asyncio.run(load(application.url))

    async def strike() -> None:
        for wait_s, process, number in signals:
            await asyncio.sleep(wait_s)
            os.kill(process, number)

    async def struck() -> list[Stream]:
        return await load(application.url, asyncio.ensure_future(strike()))

    streams = asyncio.run(struck())
    assert all(s.chunks >= TOKENS - 1 for s in streams), "a stream ended early"
    same = sum(s.text == c.text for s, c in zip(streams, calm, strict=True))
    pause_s = max(s.longest_pause_s for s in streams)
    print(f"{same} of {CLIENTS} texts the same, longest pause {pause_s:.2f} s")
    return pause_s


def shard_process(application: Application) -> int:
    shards = application.status()["controller"]["shards"]
    return int(shards[0]["shard_id"].split("-")[0])


def test_a_killed_shard_fails_no_request_and_is_replaced(application: Application) -> None:
    victim = shard_process(application)
    pause_s = strike_under_load(application, (1.5, victim, signal.SIGKILL))
    assert pause_s < 10, "a dead shard is noticed by its connection, not by waiting"
    wait_until_redundant(application, without=victim)


def test_a_stopped_shard_is_passed_by_and_comes_back(application: Application) -> None:
    victim = shard_process(application)
    strike_under_load(application, (1.5, victim, signal.SIGSTOP), (4.0, victim, signal.SIGCONT))
    wait_until_redundant(application)


def test_traffic_goes_on_without_the_controller_which_comes_back(application: Application) -> None:
    before = application.status()["controller"]["table_version"]
    [victim] = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if f":{NAME}:Controller" in " ".join(process.info["cmdline"] or [])
    ]
    strike_under_load(application, (1.5, victim, signal.SIGKILL))
    wait_until_redundant(application)
    assert application.status()["controller"]["table_version"] > before


def wait_until_redundant(application: Application, *, without: int = 0) -> None:
    """Serve starts what is missing, the controller fills it; nobody does anything."""
    end_s = time.monotonic() + REPAIR_TIMEOUT_S
    while True:
        seen = application.status().get("controller")
        if seen is not None:
            alive = [s for s in seen["shards"] if not s["shard_id"].startswith(f"{without}-")]
            if seen["complete"] and seen["redundancy"] == 2 and len(alive) == 2:
                return
        assert time.monotonic() < end_s, seen
        time.sleep(2)

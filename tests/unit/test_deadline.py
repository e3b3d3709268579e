"""Requests end with a clear error when experts stay lost; the engine is left to wait."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from services.attention.deadline import until_lost
from services.attention.feed import Stranded


async def engine(events: list[str], *, hangs: bool) -> AsyncGenerator[str, None]:
    try:
        yield "one"
        if hangs:
            await asyncio.sleep(60)
        yield "two"
    except asyncio.CancelledError:
        events.append("dropped")
        raise


def collect(*, hangs: bool, stranded: Stranded | None, deadline_s: float) -> tuple[list[Any], Any]:
    events: list[str] = []

    async def run() -> list[Any]:
        stream = until_lost(engine(events, hangs=hangs), lambda: stranded, deadline_s)
        return [item async for item in stream]

    return asyncio.run(run()), events


def test_a_stream_without_trouble_passes_unchanged() -> None:
    assert collect(hangs=False, stranded=None, deadline_s=0.1) == (["one", "two"], [])


def test_a_step_that_waits_shorter_than_the_deadline_is_waited_for() -> None:
    lost = Stranded("layer 3: no live shard holds experts [5]", time.monotonic())
    assert collect(hangs=False, stranded=lost, deadline_s=60)[0] == ["one", "two"]


def test_after_the_deadline_the_client_is_told_and_the_engine_drops_the_request() -> None:
    lost = Stranded("layer 3: no live shard holds experts [5]", time.monotonic())
    started_s = time.monotonic()
    (first, error), events = collect(hangs=True, stranded=lost, deadline_s=0.5)
    assert 0.5 <= time.monotonic() - started_s < 5
    assert first == "one"
    assert "layer 3: no live shard holds experts [5]; the request waited" in error
    assert "router.lost_expert_deadline_s=0.5. Send it again later." in error
    assert events == ["dropped"]


def test_a_request_that_comes_after_the_deadline_does_not_wait_at_all() -> None:
    lost = Stranded("layer 3: no live shard holds experts [5]", time.monotonic() - 100)
    [told], _ = collect(hangs=True, stranded=lost, deadline_s=60)
    assert told.startswith("layer 3: no live shard holds experts [5]; the request waited")

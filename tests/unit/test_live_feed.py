"""One look for all viewers, none for nobody; time passes only as far as events need."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from services.gateway.errors import Refusal
from services.live import feed as module
from services.live.feed import LiveFeed
from tests.support.scene import Scene

Stream = Any  # an asynchronous generator, whose type hides that it can be closed


def parse(block: bytes) -> tuple[str, dict[str, Any]]:
    lines = dict(line.split(": ", 1) for line in block.decode().strip().splitlines())
    return lines.get("event", ""), json.loads(lines.get("data", "null"))


async def read(stream: AsyncIterator[bytes], count: int) -> list[str]:
    return [parse(await anext(stream))[0] for _ in range(count)]


def feed(scene: Scene, **words: Any) -> LiveFeed:
    return LiveFeed(scene, **{"interval_s": 0, **words})


async def test_holdings_come_first_and_when_they_change() -> None:
    scene = Scene()
    async with aclosing(cast(Stream, feed(scene).watch())) as stream:
        assert await read(stream, 5) == ["", "holdings", "state", "state", "state"]
        scene.lose("s1")
        names = await read(stream, 6)
    assert names.count("holdings") == 1
    assert names[names.index("holdings") + 1] == "state"


async def test_viewers_share_looks_and_nobody_costs_none() -> None:
    scene = Scene()
    live = feed(scene)
    first, second = (cast(Stream, live.watch()) for _ in range(2))
    assert await read(first, 3) == ["", "holdings", "state"]
    looks = scene.n_looks
    assert await read(second, 3) == ["", "holdings", "state"]
    assert scene.n_looks <= looks + 1
    assert live.viewers == 2
    await first.aclose()
    await read(second, 2)
    await second.aclose()
    assert live.viewers == 0
    looks = scene.n_looks
    for _ in range(100):
        await asyncio.sleep(0)
    assert scene.n_looks == looks
    again = cast(Stream, live.watch())
    assert await read(again, 3) == ["", "holdings", "state"], "it begins anew"
    await again.aclose()


async def test_a_controller_that_is_away_is_an_event() -> None:
    scene = Scene(is_up=False)
    async with aclosing(cast(Stream, feed(scene).watch())) as stream:
        assert await read(stream, 3) == ["", "away", "away"]
        scene.is_up = True
        assert "holdings" in await read(stream, 3)
        scene.is_up = False
        names = await read(stream, 4)
    assert names[-1] == "away"
    assert "holdings" not in names


async def test_rates_come_with_the_second_look() -> None:
    # so far apart that a pause between a look and its time does not matter
    live = feed(Scene(tokens_per_s=100), interval_s=0.3)
    async with aclosing(cast(Stream, live.watch())) as stream:
        await read(stream, 2)
        first, second = [parse(await anext(stream))[1] for _ in range(2)]
    assert first["output_per_s"] is None
    assert second["output_per_s"] == pytest.approx(100, rel=0.5)


async def test_streams_end_when_the_gateway_stops_or_their_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing = False
    live = feed(Scene(), is_closing=lambda: closing)
    stream = cast(Stream, live.watch())
    await read(stream, 3)
    closing = True
    assert [one async for one in stream] == []
    assert live.viewers == 0
    monkeypatch.setattr(module, "MAX_STREAM_S", 0.0)
    assert [one async for one in feed(Scene()).watch()] == [b"retry: 1000\n\n"]


async def test_viewers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VIEWERS", 1)
    live = feed(Scene())
    live.check()
    async with aclosing(cast(Stream, live.watch())) as stream:
        await read(stream, 2)
        with pytest.raises(Refusal, match="1 viewers watch this gateway, which is the limit") as no:
            live.check()
        assert no.value.status == 503
    live.check()

"""The pool grows when experts are asked for much, shrinks when they are not, and nobody notices."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from deploy.bench.load import Stream, closed_loop
from deploy.bench.throughput_words import RANDOM_MODEL
from deploy.random_model import build_random_model
from tests.cluster.conftest import Application, Applications

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.extended,
    pytest.mark.timeout(700),
]

SCALING = (
    "model.dtype=float32",
    "pool.redundancy=2",
    "pool.autoscaling={min_shards: 2, max_shards: 3, target_busy_ratio: 0.12, target_queue: 9.0, "
    "grow_after_s: 1.0, shrink_after_s: 8.0}",
)
CHANGE_TIMEOUT_S = 90.0
PAUSE_S = 2.0  # between the short requests of a quiet time


@pytest.fixture(scope="module")
def application(applications: Applications) -> Application:
    """A random model on two shards, which may become three."""
    build_random_model(RANDOM_MODEL, seed=0, progress=print)
    return applications.running(*SCALING, model=RANDOM_MODEL)


async def ask(
    application: Application, stop: asyncio.Event, *, clients: int, max_tokens: int, pause_s: float
) -> list[Stream]:
    """Requests until `stop`, with pauses between them."""
    streams: list[Stream] = []
    while not stop.is_set():
        streams += await closed_loop(
            application.url,
            model="bench-model",
            prompts=["Once upon a time", "The river", "Sheep"],
            clients=clients,
            max_tokens=max_tokens,
            requests=clients,
        )
        await asyncio.sleep(pause_s)
    return streams


def ask_until(
    application: Application, is_so: Callable[[dict[str, Any]], bool], **load: float
) -> tuple[list[Stream], list[dict[str, Any]]]:
    """Every stream, and everything the controller said, until it says what is wanted."""
    seen: list[dict[str, Any]] = []

    async def look(stop: asyncio.Event) -> None:
        end_s = time.monotonic() + CHANGE_TIMEOUT_S
        try:
            while not (seen and is_so(seen[-1])):
                assert time.monotonic() < end_s, seen[-1:]
                known = (await asyncio.to_thread(application.status))["controller"]
                seen.extend([] if known is None else [known])
                await asyncio.sleep(0.3)
        finally:
            stop.set()

    async def both() -> list[Stream]:
        stop = asyncio.Event()
        streams, _ = await asyncio.gather(ask(application, stop, **load), look(stop))  # type: ignore[arg-type]
        return streams

    return asyncio.run(both()), seen


def test_the_pool_grows_and_shrinks_and_no_request_fails(application: Application) -> None:
    def has_grown(now: dict[str, Any]) -> bool:
        shards = now["shards"]
        return len(shards) == 3 and all(s["rows"] and s["state"] == "serving" for s in shards)

    def has_shrunk(now: dict[str, Any]) -> bool:
        return len(now["shards"]) == 2 and not any(s["loading"] for s in now["shards"])

    busy, growing = ask_until(application, has_grown, clients=4, max_tokens=40, pause_s=0.0)
    assert "shards: 3 wanted" in growing[-1]["scaling"][0]
    assert "rows/s" in growing[-1]["scaling"][0]
    quiet, shrinking = ask_until(application, has_shrunk, clients=1, max_tokens=4, pause_s=PAUSE_S)
    assert "shards: 2 wanted" in shrinking[-1]["scaling"][0]
    assert [s.error for s in busy + quiet if s.failed] == []
    assert len(quiet) >= 2
    assert min(now["redundancy"] for now in growing + shrinking) == 2
    states = {shard["state"] for now in shrinking for shard in now["shards"]}
    assert "suspected" not in states, states

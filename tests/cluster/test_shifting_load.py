"""Every expert once, with a slot to spare here and there: load shifts, and experts get lost."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from deploy.bench.load import Stream, open_client, stream_one
from deploy.bench.throughput_words import RANDOM_MODEL
from deploy.random_model import build_random_model
from tests.cluster.conftest import Application, Applications

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1000)]

DEADLINE_S = 4.0
REPAIR_TIMEOUT_S = 240.0
MODEL = "bench-model"
ONCE = (
    "model.dtype=float32",
    "pool.shards=3",
    "pool.slots_per_layer=12",
    f"router.lost_expert_deadline_s={DEADLINE_S}",
)


@pytest.fixture
def once(applications: Applications) -> Application:
    """A random model; three shards of twelve slots for its 32 experts a layer."""
    build_random_model(RANDOM_MODEL, seed=0, progress=print)
    return applications.running(*ONCE, model=RANDOM_MODEL)


def a_shard(application: Application) -> int:
    """The process of one."""
    while (seen := application.status()["controller"]) is None:
        pass
    return int(seen["shards"][0]["shard_id"].split("-")[0])


def run_streams(application: Application, *, killing: int | None = None) -> list[Stream]:
    """Four streams, a process killed while they run, and one more request afterwards."""

    async def run() -> list[Stream]:
        async with open_client(application.url, clients=5) as client:

            def ask(prompt: str) -> "asyncio.Task[Stream]":
                return asyncio.create_task(
                    stream_one(client, model=MODEL, prompt=prompt, max_tokens=200)
                )

            streams = [ask(f"Story {i}. Once upon a time") for i in range(4)]
            await asyncio.sleep(2)
            if killing is not None:
                os.kill(killing, signal.SIGKILL)
            await asyncio.sleep(1)
            return await asyncio.gather(*streams, ask("late"))

    return asyncio.run(run())


def wait_until_whole(application: Application) -> None:
    end_s = time.monotonic() + REPAIR_TIMEOUT_S
    while True:
        seen = application.status()["controller"]
        if seen is not None and seen["complete"] and len(seen["shards"]) == 3:
            return
        assert time.monotonic() < end_s, json.dumps(seen)
        time.sleep(2)


def test_load_that_shifts_is_followed_and_nobody_notices(once: Application, tmp_path: Path) -> None:
    words = ["--scenarios", "rebalance", "--requests", "6", "--max-tokens", "40"]
    words += ["--settle", "20", "--follow", "45"]
    result = once.bench_faults(tmp_path / "faults.json", *words)["rebalance"]
    assert result["failed"] == 0, result["errors"]
    assert result["p99_ratio"] is not None, "no expert moved"
    assert result["imbalance_after"] <= 1.10 * result["imbalance_optimum"]
    assert "cause: asked for" in once.deploy("rebalance", timeout_s=200).stdout
    assert "last decision" in once.deploy("status").stdout


def test_when_experts_stay_lost_requests_are_told_and_the_engine_goes_on(
    once: Application,
) -> None:
    engine, shard = once.processes("EngineCore"), a_shard(once)
    started_s = time.monotonic()
    with once.no_new_processes():
        streams = run_streams(once, killing=shard)
    assert time.monotonic() - started_s < DEADLINE_S + 30
    assert any(stream.error for stream in streams), "a shard alone held a third of the experts"
    for stream in streams:
        if stream.error:
            assert "no live shard holds experts" in stream.error
            assert f"router.lost_expert_deadline_s={DEADLINE_S:g}" in stream.error
    wait_until_whole(once)
    assert once.processes("EngineCore") == engine
    assert [stream.error for stream in run_streams(once)] == [""] * 5

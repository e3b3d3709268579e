"""Two attention replicas and two gateways: one is killed under load, and no stream breaks."""

import asyncio
import os
import signal
import time

import httpx
import psutil
import pytest

from deploy.bench.load import Stream, open_client, stream_one
from deploy.bench.throughput_words import RANDOM_MODEL
from deploy.random_model import build_random_model
from tests.cluster.conftest import Application, Applications

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "bench-model"
TOKENS = 200
FEWER = 100
STREAMS = 10
ASK_S = 60.0
SUCCESSOR_S = 300.0  # an attention replica's, which imports vLLM
TAKEOVERS = "expertmesh_takeovers_total{"


@pytest.fixture
def two(applications: Applications) -> Application:
    """A random model, two attention replicas that share two shards, two gateways."""
    build_random_model(RANDOM_MODEL, seed=0, progress=print)
    return applications.running(
        "model.dtype=float32", "attention.replicas=2", "attention.kv_cache_gib=0.25",
        "gateway.replicas=2", model=RANDOM_MODEL,
    )  # fmt: skip


def both(application: Application, title: str) -> list[int]:
    """A process of each replica; waits until both are there, and are given requests."""
    end_s = time.monotonic() + SUCCESSOR_S
    while True:
        engines = httpx.get(f"{application.url}/ready", timeout=ASK_S).json().get("engines")
        found = application.processes(title)
        if engines == len(found) == 2 and is_healthy(application):
            return found
        assert time.monotonic() < end_s, (engines, found)
        time.sleep(1)


def is_healthy(application: Application) -> bool:
    """Whether Serve counts on all replicas; a successor's engine is up before it does."""
    return {state["status"] for state in application.status()["deployments"]} == {"HEALTHY"}


def takeovers(application: Application) -> float:
    """Requests that gateways have taken over from dead replicas, as far as they have told."""
    lines = httpx.get(f"{application.url}/metrics", timeout=ASK_S).text.splitlines()
    return sum(float(one.split()[-1]) for one in lines if one.startswith(TAKEOVERS))


def wait_for_takeover(application: Application, before: float) -> None:
    end_s = time.monotonic() + ASK_S
    while takeovers(application) <= before:
        assert time.monotonic() < end_s, "the one that was killed had no stream"
        time.sleep(0.5)


async def kill_the_busier(processes: list[int]) -> None:
    """After a second of load. Serve gives a burst to one replica alone, if the other one is new

    and does not say within 0.1 s how much it has to do.
    """
    before = [used_s(one) for one in processes]
    await asyncio.sleep(1)
    used = [used_s(one) - past for one, past in zip(processes, before, strict=True)]
    os.kill(processes[used.index(max(used))], signal.SIGKILL)


def used_s(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def stream_all(application: Application, *, kill_one_of: list[int] | None = None) -> list[Stream]:
    """All streams at once; a process killed when each has some tokens."""

    async def run() -> list[Stream]:
        async with open_client(application.url, clients=STREAMS) as client:
            tasks = [
                asyncio.create_task(
                    stream_one(
                        client, model=MODEL, prompt=f"Story {n}. Once upon", max_tokens=TOKENS
                    )
                )
                for n in range(STREAMS)
            ]
            if kill_one_of is not None:
                await kill_the_busier(kill_one_of)
            return await asyncio.gather(*tasks)

    return asyncio.run(run())


def test_streams_go_on_when_their_replica_or_its_engine_is_killed(two: Application) -> None:
    calm = stream_all(two)
    assert [stream.error for stream in calm] == [""] * STREAMS
    for title in (":AttentionServer", "VLLM::EngineCore"):
        processes, taken_over = both(two, title), takeovers(two)
        disturbed = stream_all(two, kill_one_of=processes)
        assert [stream.error for stream in disturbed] == [""] * STREAMS
        wait_for_takeover(two, taken_over)
        same = sum(a.text == b.text for a, b in zip(calm, disturbed, strict=True))
        print(f"{title}: {same} of {STREAMS} texts as undisturbed")


def test_a_gateway_that_is_killed_costs_no_request(two: Application) -> None:
    gateways = two.processes(":Gateway")
    assert len(gateways) == 2

    async def run(*, kill: bool) -> tuple[list[httpx.Response], list[Stream]]:
        body = {"model": MODEL, "prompt": "Once", "max_tokens": FEWER, "ignore_eos": True}
        async with open_client(two.url, clients=2 * STREAMS) as client:
            streams = [
                asyncio.create_task(
                    stream_one(client, model=MODEL, prompt=f"Story {n}.", max_tokens=FEWER)
                )
                for n in range(STREAMS)
            ]
            wholes = [
                asyncio.create_task(client.post("/v1/completions", json=body))
                for _ in range(STREAMS)
            ]
            if kill:
                await kill_the_busier(gateways)
            return await asyncio.gather(*wholes), await asyncio.gather(*streams)

    _, calm = asyncio.run(run(kill=False))
    taken_over = takeovers(two)
    wholes, streams = asyncio.run(run(kill=True))
    assert [answer.status_code for answer in wholes] == [200] * STREAMS
    assert [stream.error for stream in streams] == [""] * STREAMS
    assert [stream.tokens for stream in streams] == [stream.tokens for stream in calm]
    wait_for_takeover(two, taken_over)
    same = sum(a.text == b.text for a, b in zip(calm, streams, strict=True))
    print(f"{same} of {STREAMS} texts as undisturbed")


def test_down_with_a_grace_lets_streams_end_and_takes_no_new_request(
    applications: Applications, two: Application
) -> None:
    async def run() -> tuple[list[Stream], httpx.Response, str]:
        async with open_client(two.url, clients=STREAMS + 1) as client:
            streams = [
                asyncio.create_task(
                    stream_one(client, model=MODEL, prompt=f"Story {n}.", max_tokens=TOKENS)
                )
                for n in range(STREAMS)
            ]
            await asyncio.sleep(1)
            down = asyncio.create_task(
                asyncio.to_thread(two.deploy, "down", "--grace", "60", timeout_s=120)
            )
            body = {"model": MODEL, "prompt": "Once", "max_tokens": 1}
            while (late := await client.post("/v1/completions", json=body)).is_success:
                assert not all(stream.done() for stream in streams), "it never stopped taking any"
                await asyncio.sleep(0.1)
            done = await asyncio.gather(*streams)
            stopped = await down
            assert stopped.returncode == 0
            return done, late, stopped.stdout

    done, late, printed = asyncio.run(run())
    applications.stop()
    assert [stream.error for stream in done] == [""] * STREAMS
    assert [stream.tokens for stream in done] == [TOKENS] * STREAMS
    assert (late.status_code, late.json()["error"]["type"]) == (503, "service_unavailable")
    assert "stopping" in late.text
    assert late.headers["retry-after"]
    assert "cut off" not in printed
    assert two.process.returncode == 128 + signal.SIGTERM

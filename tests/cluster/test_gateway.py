"""The gateway of the running application: its routes by the official clients, and bad input."""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Callable

import anthropic
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.conftest import MODEL, Application
from tests.support.bad_bodies import bad_bodies

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

QUESTION = "What is the capital of France?"
LONG = {"model": MODEL, "prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
ASK_S = 60.0
RUNNING = "expertmesh_engine_running_requests"


def metric(application: Application, name: str, **labels: str) -> float:
    """The sum of the series that have these labels."""
    families = text_string_to_metric_families(
        httpx.get(f"{application.url}/metrics", timeout=ASK_S).text
    )
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    assert samples, name
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


def await_that(is_so: Callable[[], bool]) -> None:
    """Reports take a while."""
    end_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.5)


def test_messages_answer_anthropics_client(application: Application) -> None:
    with anthropic.Anthropic(base_url=application.url, api_key="none", max_retries=0) as client:
        asked = {
            "model": MODEL, "max_tokens": 24,
            "messages": [{"role": "user", "content": QUESTION}],
        }  # fmt: skip
        whole = client.messages.create(**asked)  # type: ignore[call-overload]
        assert "Paris" in whole.content[0].text
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(**asked) as stream:  # type: ignore[arg-type]
            assert stream.get_final_text() == whole.content[0].text
        counted = client.messages.count_tokens(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}]
        )
        assert counted.input_tokens == whole.usage.input_tokens


async def test_messages_answer_anthropics_async_client(application: Application) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=application.url, auth_token="none", api_key=None, max_retries=0
    ) as client:
        whole = await client.messages.create(
            model=MODEL, max_tokens=24, messages=[{"role": "user", "content": QUESTION}]
        )
        assert "Paris" in whole.content[0].text  # type: ignore[union-attr]


def test_responses_answer_openais_client(application: Application) -> None:
    with openai.OpenAI(base_url=f"{application.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24)
        assert "Paris" in whole.output_text
        events = list(
            client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=24, stream=True)
        )
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text
        assert events[-1].type == "response.completed"


async def test_completions_stream_to_openais_async_client(application: Application) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{application.url}/v1", api_key="none", max_retries=0
    ) as client:
        asked = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 6}
        whole = await client.completions.create(**asked, temperature=0)  # type: ignore[call-overload]
        pieces = [
            chunk.choices[0].text
            async for chunk in await client.completions.create(  # type: ignore[call-overload]
                **asked, temperature=0, stream=True
            )
        ]
        assert "".join(pieces) == whole.choices[0].text


def test_tokens_go_there_and_back(application: Application) -> None:
    with httpx.Client(base_url=application.url, timeout=ASK_S) as client:
        asked = client.post("/tokenize", json={"model": MODEL, "prompt": QUESTION})
        tokens = asked.json()["tokens"]
        back = client.post("/detokenize", json={"model": MODEL, "tokens": tokens}).json()
        assert back["prompt"] == QUESTION


def test_what_is_not_there_is_a_404_in_openais_shape(application: Application) -> None:
    with httpx.Client(base_url=application.url, timeout=ASK_S) as client:
        for answer in (
            client.get("/nothing"),
            client.get("/v1/models/no-such-model"),
            client.post("/v1/embeddings", json={"model": MODEL, "input": "x"}),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"]
        wrong = client.get("/v1/chat/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
        assert "/v1/embeddings" not in client.get("/openapi.json").json()["paths"]


def test_health_and_readiness(application: Application) -> None:
    with httpx.Client(base_url=application.url, timeout=ASK_S) as client:
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").json() == {"status": "ready", "engines": 1}
        assert client.get("/admin/status").json()["complete"] is True


def test_a_client_that_leaves_frees_the_engine(application: Application) -> None:
    body = LONG | {"stream": True}
    with httpx.stream("POST", f"{application.url}/v1/completions", json=body, timeout=ASK_S) as got:
        assert next(got.iter_lines())
    await_that(lambda: metric(application, RUNNING) == 0)  # 1,500 tokens would take longer
    asked = {"route": "completions", "outcome": "cancelled"}
    await_that(lambda: metric(application, "expertmesh_requests_total", **asked) >= 1)


def test_a_request_whose_time_is_over_ends(application: Application) -> None:
    url, headers = f"{application.url}/v1/completions", {"x-request-timeout": "1"}
    started_s = time.monotonic()
    answer = httpx.post(url, json=LONG, headers=headers, timeout=ASK_S)
    assert answer.status_code == 504
    assert "time is over" in answer.json()["error"]["message"]
    assert time.monotonic() - started_s < 10


async def test_bad_bodies_are_refused_and_nothing_is_harmed(application: Application) -> None:
    cases = list(bad_bodies(MODEL))
    few = asyncio.Semaphore(4)
    seen: dict[str, str] = {}

    async with httpx.AsyncClient(base_url=application.url, timeout=5 * ASK_S) as client:

        async def send(name: str, path: str, body: bytes) -> None:
            async with few:
                answer = await client.post(
                    path, content=body, headers={"Content-Type": "application/json"}
                )
            is_refused = 400 <= answer.status_code < 500 and "Traceback" not in answer.text
            has_shape = bool(json.loads(answer.text).get("error"))
            seen[name] = "refused" if is_refused and has_shape else f"{answer.status_code}"

        await asyncio.gather(*(send(*case) for case in cases))
        print(f"{len(cases)} bodies: {Counter(seen.values())}")
        assert {name: what for name, what in seen.items() if what != "refused"} == {}
        assert (await client.get("/ready")).status_code == 200
        body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 3}
        answer = await client.post("/v1/completions", json={**body, "temperature": 0})
        assert "Paris" in answer.json()["choices"][0]["text"]
    await_that(lambda: metric(application, RUNNING) == 0)


def test_bodies_that_are_too_large_or_never_end_are_refused(application: Application) -> None:
    large = httpx.post(
        f"{application.url}/v1/completions",
        content=b'{"prompt": "' + b"x" * (5 * 2**20) + b'"}',
        headers={"Content-Type": "application/json"},
        timeout=ASK_S,
    )
    assert large.status_code == 413
    host, port = application.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=ASK_S) as slow:
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        assert b"408" in slow.recv(4096).split(b"\r\n")[0]
    with socket.create_connection((host, int(port)), timeout=ASK_S) as flood:
        flood.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        try:
            for number in range(20_000):
                flood.sendall(b"X-%d: %s\r\n" % (number, b"y" * 100))
            flood.sendall(b"\r\n")
            answer = flood.recv(4096)
        except OSError:
            answer = b""
        assert answer.split(b"\r\n")[0][9:12] in (b"", b"400", b"431"), answer
    assert httpx.get(f"{application.url}/ready", timeout=ASK_S).status_code == 200

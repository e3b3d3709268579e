"""A real Prometheus scrapes the running application."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deploy.free_port import free_port
from monitoring.metrics import METRICS
from monitoring.render_grafana import DASHBOARDS, FOLDER
from tests.cluster.conftest import MODEL, Application, Applications
from tests.support.prometheus import BINARY, Prometheus

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BINARY is None, reason="no prometheus: apt-get install prometheus"),
]
REPORTED_S = 3.0  # worker to replica, replica to controller, scrape
RAY_REPORTED_S = 20.0  # Serve's processes to Ray's agent, scrape
REST_S = 120.0
PASSED_ON = 'sum(ray_serve_num_http_requests_total{method="POST"}) or vector(0)'
MISSING = 'ALERTS{alertname="ExpertMeshShardMissing",alertstate="firing"}'
DEGRADED = 'ALERTS{alertname="ExpertMeshRedundancyBelowTarget",alertstate="firing"}'
EITHER = (
    'ALERTS{alertname=~"ExpertMeshShardMissing|ExpertMeshRedundancyBelowTarget",'
    'alertstate="firing"}'
)
TOTALS = {
    "prompt": "sum(expertmesh_prompt_tokens_total)",
    "output": "sum(expertmesh_output_tokens_total)",
    "ok": 'sum(expertmesh_requests_total{outcome="ok"})',
    "client_error": 'sum(expertmesh_requests_total{outcome="client_error"})',
    "first_tokens": "expertmesh_ttft_seconds_count",
    "engines_first_tokens": "expertmesh_engine_ttft_seconds_count",
    "between_tokens": "expertmesh_inter_token_seconds_count",
    "routed": "sum(expertmesh_layer_rows_total)",
    "returned": 'sum(expertmesh_dispatch_rows_total{direction="returned"})',
    "computed": "sum(expertmesh_shard_rows_total)",
}


@pytest.fixture(scope="module")
def app(applications: Applications) -> Application:
    return applications.twice()


@pytest.fixture(scope="module")
def prometheus(app: Application, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    targets = {"expertmesh": app.url.removeprefix("http://"), "ray": f"127.0.0.1:{ray_port(app)}"}
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), free_port(), targets)
    try:
        running.wait_for("expertmesh_controller_up == 1")
        running.wait_for("ray_serve_deployment_replica_healthy")
        yield running
    finally:
        running.close()


def ray_port(app: Application) -> int:
    """Where this application's Ray exports: its host's name is the Ray node's id."""
    text = httpx.get(f"{app.url}/metrics", timeout=30).text
    node = text.split('expertmesh_shard_info{host="')[1].split('"')[0]
    [file] = {f.resolve() for f in Path("/tmp/ray").glob(f"session_2*/metrics_export_port_{node}")}
    return int(file.read_text())


async def ask(url: str, number: int) -> tuple[int, int]:
    """One request, streamed or not; (prompt, output) tokens as the client is told."""
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 4 + number, "temperature": 1}
    question = f"Tell me about the number {number}."
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        if number % 3 == 0:
            usage = (await client.completions.create(prompt=question, **options)).usage
        else:
            options["messages"] = [{"role": "user", "content": question}]
            if number % 3 == 1:
                usage = (await client.chat.completions.create(**options)).usage
            else:
                usage = None
                options |= {"stream": True, "stream_options": {"include_usage": True}}
                async for chunk in await client.chat.completions.create(**options):
                    usage = chunk.usage or usage
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens


async def ask_all(url: str, count: int) -> tuple[int, int]:
    told = await asyncio.gather(*(ask(url, number) for number in range(count)))
    return sum(t[0] for t in told), sum(t[1] for t in told)


def read(prometheus: Prometheus) -> dict[str, float]:
    """All totals, when everything has been reported and scraped: when they rest."""
    end_s = time.monotonic() + REST_S
    last: dict[str, float] = {}
    while True:
        time.sleep(REPORTED_S)
        now = {name: prometheus.number(query) for name, query in TOTALS.items()}
        if now == last:
            return now
        assert time.monotonic() < end_s, (last, now)
        last = now


def test_totals_are_what_clients_counted(app: Application, prometheus: Prometheus) -> None:
    before = read(prometheus)
    prompt, output = asyncio.run(ask_all(app.url, 9))
    assert httpx.post(f"{app.url}/v1/chat/completions", json={}, timeout=30).status_code == 400
    after = read(prometheus)
    grown = {name: after[name] - before[name] for name in TOTALS}
    print(grown)
    assert grown["prompt"] == prompt
    assert grown["output"] == output
    assert (grown["ok"], grown["client_error"], grown["first_tokens"]) == (9, 1, 9)
    assert grown["engines_first_tokens"] == 9
    assert grown["between_tokens"] == output - 9
    assert grown["routed"] == grown["returned"] == grown["computed"] > 0
    assert grown["routed"] % (30 * 2) == 0, "30 layers, two experts for every token"


def test_a_killed_shard_fires_alerts_that_resolve(app: Application, prometheus: Prometheus) -> None:
    prometheus.wait_for(f"absent({EITHER})", 60)
    [shard] = prometheus.query('expertmesh_shard_info{shard="0"}')
    with app.no_new_processes():  # or a quick successor is there before both were seen
        os.kill(int(shard["metric"]["shard_id"].split("-")[0]), signal.SIGKILL)
        asyncio.run(ask_all(app.url, 3))
        prometheus.wait_for(MISSING, 60)
        prometheus.wait_for(DEGRADED, 60)
    prometheus.wait_for(f"absent({EITHER})", 400)
    there = {s["metric"]["shard_id"] for s in prometheus.query("expertmesh_shard_info")}
    assert len(there - {shard["metric"]["shard_id"]}) == len(there) == 2
    assert prometheus.number("expertmesh_degraded_seconds_total") > 1
    asyncio.run(ask_all(app.url, 3))
    time.sleep(REPORTED_S)
    assert {
        name for name in cumulative() if prometheus.number(f"sum(resets({name}[15m]))")
    } == set()


def test_serves_proxy_passes_on_the_first_request_of_a_kind_alone(
    app: Application, prometheus: Prometheus
) -> None:
    """The others reach a gateway in one call, which a fallback would hide."""
    asyncio.run(ask_all(app.url, 1))
    before = prometheus.number(PASSED_ON)
    asyncio.run(ask_all(app.url, 9))
    time.sleep(RAY_REPORTED_S)
    assert prometheus.number(PASSED_ON) - before <= 1, "the first, if Ray had not reported it"


def cumulative() -> Iterator[str]:
    """Names of series that must not step back."""
    for metric in METRICS.values():
        if metric.kind == "histogram":
            yield from (f"{metric.name}_count", f"{metric.name}_bucket")
        elif metric.kind == "counter":
            yield metric.name


def panels() -> Iterator[tuple[str, str]]:
    for name in DASHBOARDS:
        for panel in json.loads((FOLDER / f"{name}.json").read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} ({target['refId']})", target["expr"]


def test_every_query_of_every_dashboard_returns_data(
    app: Application, prometheus: Prometheus
) -> None:
    empty = []
    for title, query in panels():
        filled = query.replace("$job", "expertmesh").replace("$__rate_interval", "4m")
        values = [float(series["value"][1]) for series in prometheus.query(filled)]
        print(f"{title}: {len(values)} series, {values[0]:.4g}" if values else f"{title}: none")
        if not values or all(value != value for value in values):
            empty.append(title)
    assert empty == []

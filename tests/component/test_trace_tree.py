"""One request through gateway, attention replica, engine steps, layers and shards in this process:

its spans are one tree, and rows cross real sockets.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.v1.core.sched.output import SchedulerOutput

from router.choose import Policy
from router.errors import EngineError
from services import vllm_hooks
from services.attention.mark import KEY
from services.attention.settings import RemoteSettings
from services.attention.steps import Steps
from services.config_watch import TracingConfig
from services.tracing import Tracing, from_traceparent, tracing_to
from tests.component.test_remote_pool import EXPERTS, HIDDEN
from tests.support.small_deployment import LAYER_INTERVAL, LAYERS, Deployment

CONFIG = TracingConfig(endpoint="http://collector", sample_ratio=0.0)
CLIENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def deployment(tmp_path: Path, exporter: InMemorySpanExporter) -> Iterator[Deployment]:
    def tracing(role: str) -> Tracing:
        return tracing_to(SimpleSpanProcessor(exporter), CONFIG, role)

    deployment = Deployment(tmp_path, tracing)
    yield deployment
    deployment.close()


def role(span: ReadableSpan) -> str:
    return str(span.resource.attributes["service.name"]).removeprefix("expertmesh-")


def tree(spans: tuple[ReadableSpan, ...]) -> dict[str, int]:
    """Path of names from the root → how many spans are there."""
    by_id = {span.context.span_id: span for span in spans}
    found: dict[str, int] = {}
    for span in spans:
        path, above = [span.name], span.parent
        while above is not None and above.span_id in by_id:
            path.append(by_id[above.span_id].name)
            above = by_id[above.span_id].parent
        joined = " > ".join(reversed(path))
        found[joined] = found.get(joined, 0) + 1
    return found


async def test_a_request_is_one_tree_from_the_client_to_the_shards(
    deployment: Deployment, exporter: InMemorySpanExporter
) -> None:
    await deployment.post(CLIENT)
    deployment.close()
    spans = exporter.get_finished_spans()
    top, steps, layers = "POST /v1/completions", 2, LAYERS // LAYER_INTERVAL
    assert tree(spans) == {
        top: 1,
        f"{top} > attention": 1,
        f"{top} > attention > step": steps,  # the first, and the third
        f"{top} > attention > step > layer": steps * layers,
        f"{top} > attention > step > layer > shard": steps * layers * 2,
    }
    assert {f"{span.context.trace_id:032x}" for span in spans} == {"ab" * 16}
    assert {role(s) for s in spans} == {"gateway", "attention", "engine", "shard"}
    assert {role(s) for s in spans if s.name == "shard"} == {"shard"}
    [request_id] = {(s.attributes or {}).get("expertmesh.request_id") for s in spans} - {None}
    for span in spans:
        said = span.attributes or {}
        assert said.get("expertmesh.request_ids", (request_id,)) == (request_id,)
        assert "secret" not in span.to_json()


async def test_spans_say_how_long_what_took_and_which_rows(
    deployment: Deployment, exporter: InMemorySpanExporter
) -> None:
    await deployment.post(CLIENT)
    deployment.close()
    by_name: dict[str, list[Any]] = {}
    for span in exporter.get_finished_spans():
        by_name.setdefault(span.name, []).append(span)
    for span in by_name["step"]:
        assert span.attributes["expertmesh.tokens"] == 2
    for span in by_name["layer"]:
        said = span.attributes
        assert (said["expertmesh.rows"], said["expertmesh.shards"]) == (2 * EXPERTS, ("a", "b"))
        assert all(said[f"expertmesh.{name}_us"] >= 0 for name in ("choose", "wait", "combine"))
    seen = {span.attributes["expertmesh.layer"] for span in by_name["layer"]}
    assert seen == set(range(LAYERS)), "another first layer each time"
    for span in by_name["shard"]:
        said = span.attributes
        first = "ab".index(said["expertmesh.shard"])
        assert said["expertmesh.experts"] == tuple(range(first, EXPERTS, 2))
        assert said["expertmesh.rows"] == said["expertmesh.batch_rows"] == EXPERTS
        assert said["expertmesh.queue_us"] >= 0
        assert said["expertmesh.compute_us"] >= 0
        assert span.start_time <= span.end_time


async def test_a_request_that_is_not_sampled_leaves_nothing_and_begins_nothing(
    deployment: Deployment, exporter: InMemorySpanExporter
) -> None:
    await deployment.post(xargs={KEY: CLIENT, "other": 1})
    deployment.close()
    assert exporter.get_finished_spans() == ()
    [headers], [params] = deployment.engine.headers, deployment.engine.params
    told = from_traceparent(headers[b"traceparent"].decode())
    assert told is not None, "vLLM would begin a trace of its own"
    assert not told.trace_flags.sampled
    assert params.extra_args == {"other": 1}, "a client cannot mark its request itself"


async def test_a_traced_request_is_forgotten_when_it_is_over(deployment: Deployment) -> None:
    await deployment.post(CLIENT)
    assert deployment.pool.steps._traced == {}
    with deployment.pool.steps.step({"other": 1}, started=[("other", None)], finished=()):
        assert not deployment.pool.steps.is_followed


async def test_requests_that_share_a_step_are_linked(
    deployment: Deployment, exporter: InMemorySpanExporter
) -> None:
    other = f"00-{'12' * 16}-{'34' * 8}-01"
    ids = ["1" * 32, "2" * 32, "3" * 32]
    tokens = {f"cmpl-{request_id}-0-abcd": 1 for request_id in ids}
    names = list(tokens)
    started = [(names[0], None), (names[1], CLIENT), (names[2], other)]
    with deployment.pool.steps.step(tokens, started=started, finished=()):
        deployment.engine.run_layers()
    deployment.close()
    [step] = [span for span in exporter.get_finished_spans() if span.name == "step"]
    assert step.parent is not None
    assert f"{step.parent.span_id:016x}" == "cd" * 8
    assert [f"{link.context.span_id:016x}" for link in step.links] == ["34" * 8]
    assert (step.attributes or {})["expertmesh.request_ids"] == tuple(ids)


async def test_debug_lines_of_a_shard_name_the_request_without_tracing_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = Deployment(tmp_path, lambda role: Tracing(), logs_rows=True)
    with caplog.at_level(logging.DEBUG, logger="services"):
        await deployment.post()
        deployment.close()
    lines = [r.getMessage() for r in caplog.records if r.name == "services.experts.watch"]
    [answered] = [r.getMessage() for r in caplog.records if r.name == "services.gateway.front"]
    request_id = answered.split("request_id=")[1].split()[0]
    assert lines
    assert all(line.startswith(f"rows served: request_ids={request_id} ") for line in lines)
    assert "secret" not in caplog.text


def test_lines_about_lost_and_refused_rows_name_the_requests(
    deployment: Deployment, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.workers[0]._slot_of[:] = -1  # as if its experts had moved
    name = f"cmpl-{'7' * 32}-0-abcd"
    x, weights = torch.ones(1, HIDDEN), torch.ones(1, 1)
    ids = torch.zeros(1, 1, dtype=torch.int32)
    deployment.pool.settings = RemoteSettings("", "test", 5.0, 0.1, Policy.LEAST_TOKENS)
    steps = deployment.pool.steps
    with (
        caplog.at_level(logging.DEBUG, logger="services"),
        pytest.raises(Exception, match=r"no live shard holds experts \[0\]"),
        steps.step({name: 1}, started=[(name, CLIENT)], finished=()),
    ):
        deployment.pool.compute(0, x, weights, ids, meanwhile=lambda: None)
    deployment.close()
    said = [r.getMessage() for r in caplog.records]
    for event in ("rows refused: request_ids=", "step waits: request_ids="):
        assert [line for line in said if line.startswith(event + "7" * 32)], said
    refused = [s for s in exporter.get_finished_spans() if s.name == "shard"]
    assert refused
    assert not refused[0].status.is_ok
    assert "experts [0] are not held here" in str(refused[0].status.description)


def test_long_lists_of_requests_are_cut_in_lines() -> None:
    steps = Steps(Tracing(), step_interval=1, layer_interval=1)
    names = {f"cmpl-{n:032x}-0": 1 for n in range(11)}
    with steps.step(names, started=(), finished=()):
        assert steps.named().endswith(f"{7:032x},+3")
        assert not steps.is_followed
    assert steps.named() == "-"


def test_another_vllm_is_named_with_what_its_steps_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_hooks.check_vllm()
    monkeypatch.setitem(vllm_hooks.EXPECTED_FIELDS, SchedulerOutput, {"finished_req_ids", "gone"})
    with pytest.raises(EngineError, match=r"differs from 0\.32\.0.*: SchedulerOutput\.gone\."):
        vllm_hooks.check_vllm()

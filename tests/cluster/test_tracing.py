"""A traced request through the real processes, as a collector on this host sees it."""

import time
import uuid
from collections import Counter

import httpx
import pytest

from tests.cluster.conftest import MODEL, NAME, Application, Applications
from tests.support.collector import Collector, Seen

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
WORDS = "What is the capital of France?"
ARRIVED_S = 30.0  # a second at most in each process, on a busy machine more
OURS = {"POST /v1/chat/completions", "attention", "llm_request", "step", "layer", "shard"}


@pytest.fixture
def collector(applications: Applications, application: Application) -> Collector:
    """The one that the running application sends to."""
    return applications.collector


def ask(application: Application, traceparent: str = "", **options: object) -> httpx.Response:
    body = {
        "model": MODEL, "max_tokens": 6, "temperature": 0,
        "messages": [{"role": "user", "content": WORDS}], **options,
    }  # fmt: skip
    headers = {"traceparent": traceparent} if traceparent else {}
    url = f"{application.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=120).raise_for_status()


def arrived(collector: Collector, trace_id: str) -> list[Seen]:
    """The spans of a trace, once each kind is there."""
    end_s = time.monotonic() + ARRIVED_S
    while True:
        spans = [span for span in collector.spans() if span.trace_id == trace_id]
        if {span.name for span in spans} >= OURS:
            return spans
        assert time.monotonic() < end_s, Counter(span.name for span in spans)
        time.sleep(0.2)


def test_one_tree_from_the_client_through_every_process(
    application: Application, collector: Collector
) -> None:
    trace_id, mine = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    ask(application, f"00-{trace_id}-{mine}-01")
    spans = arrived(collector, trace_id)
    by_id = {span.span_id: span for span in spans}
    above = {
        (span.name, by_id[span.parent_id].name if span.parent_id in by_id else span.parent_id)
        for span in spans
    }
    assert above == {
        ("POST /v1/chat/completions", mine),
        ("attention", "POST /v1/chat/completions"),
        ("llm_request", "attention"),
        ("step", "attention"),
        ("layer", "step"),
        ("shard", "layer"),
    }
    services = {span.name: span.service.removeprefix("expertmesh-") for span in spans}
    assert services == {
        "POST /v1/chat/completions": "gateway",
        "attention": "attention",
        "llm_request": "attention",
        "step": "engine",
        "layer": "engine",
        "shard": "shard",
    }
    assert {span.namespace for span in spans} == {NAME}
    print(Counter(span.name for span in spans))


def test_what_nobody_asked_to_trace_is_not(application: Application, collector: Collector) -> None:
    ask(application)
    ask(application, f"00-{uuid.uuid4().hex}-{'cd' * 8}-00")
    trace_id = uuid.uuid4().hex
    ask(application, f"00-{trace_id}-{'cd' * 8}-01")
    arrived(collector, trace_id)  # what came before it would be there too
    ours = [span for span in collector.spans() if span.name in OURS]
    assert {span.parent_id for span in ours if span.name.startswith("POST")} - {""}
    assert "" not in {span.parent_id for span in ours}, "a trace that no client began"
    for body in collector.bodies:
        assert b"capital of France" not in body

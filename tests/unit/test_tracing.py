"""Spans without a network: where they come from, what they say, and what they never say."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from router.errors import PeerLost
from services.config import load_config
from services.config_watch import TracingConfig
from services.gateway.front import Front
from services.gateway.keys import digest_of, make_key
from services.gateway.settings import gateway_settings
from services.messages import GatewayNews
from services.relayed import Head, Part, RelayedRequest
from services.tracing import (
    Tracing,
    environment,
    from_traceparent,
    start_tracing,
    to_traceparent,
    tracing_to,
)

CLIENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
UNSAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-00"
SECRET_WORDS = "my secret prompt"
BODY = {"model": "m", "messages": [{"role": "user", "content": SECRET_WORDS}]}


class Gateway:
    """A front whose replica remembers what it was asked."""

    def __init__(self, tracing: Tracing | None, keys_file: str | None = None) -> None:
        self.asked: list[RelayedRequest] = []
        config = load_config(None, {"model.path": "m", "gateway.keys_file": keys_file})
        self.front = Front(gateway_settings(config), self._ask, {}, tracing)
        self.front.hear(GatewayNews(engines=1), 0.0)

    async def _ask(self, request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
        self.asked.append(request)
        if b"dies" in request.body:
            raise PeerLost("gone")
        yield Head(200, ())
        yield Part(b"my secret answer", prompt_tokens=3, output_tokens=2)
        if b"never ends" in request.body:
            await asyncio.Event().wait()

    async def post(
        self,
        traceparent: str = "",
        path: str = "/v1/chat/completions",
        key: str = "",
        user: str = "",
    ) -> int:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await self.front.answer(Request(scope, receive))
            await response(scope, receive, send)

        headers = {"traceparent": traceparent, "x-api-key": key}
        headers = {name: value for name, value in headers.items() if value}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return (await http.post(path, json=BODY | {"user": user}, headers=headers)).status_code


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def traced(
    exporter: InMemorySpanExporter, sample_ratio: float = 1.0, keys_file: str | None = None
) -> Gateway:
    config = TracingConfig(endpoint="http://collector", sample_ratio=sample_ratio)
    return Gateway(tracing_to(SimpleSpanProcessor(exporter), config, "gateway"), keys_file)


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_a_request_is_a_span_that_names_what_may_be_named(
    exporter: InMemorySpanExporter,
) -> None:
    gateway = traced(exporter)
    assert await gateway.post() == 200
    [span] = exporter.get_finished_spans()
    assert span.name == "POST /v1/chat/completions"
    assert span.parent is None
    assert attributes(span) == {
        "expertmesh.request_id": gateway.asked[0].request_id,
        "expertmesh.key_name": "anyone",
        "expertmesh.outcome": "ok",
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
    }
    assert span.resource.attributes["service.name"] == "expertmesh-gateway"
    assert "secret" not in span.to_json()


async def test_the_replica_goes_on_below_the_gateway_and_that_below_the_client(
    exporter: InMemorySpanExporter,
) -> None:
    gateway = traced(exporter)
    await gateway.post(CLIENT)
    [span] = exporter.get_finished_spans()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "cd" * 8
    told = from_traceparent(gateway.asked[0].traceparent)
    assert told is not None
    assert f"{told.trace_id:032x}" == "ab" * 16
    assert told.span_id == span.context.span_id


@pytest.mark.parametrize("header", ["", "00-zz-cd-01", f"00-{'0' * 32}-{'cd' * 8}-01", "x" * 300])
async def test_what_is_no_traceparent_begins_a_trace(
    exporter: InMemorySpanExporter, header: str
) -> None:
    await traced(exporter).post(header)
    [span] = exporter.get_finished_spans()
    assert span.parent is None


async def test_the_ratio_holds_for_those_who_say_nothing(exporter: InMemorySpanExporter) -> None:
    gateway = traced(exporter, sample_ratio=0.0)
    await gateway.post()
    assert exporter.get_finished_spans() == ()
    told = from_traceparent(gateway.asked[0].traceparent)
    assert told is not None
    assert not told.trace_flags.sampled, "vLLM would begin a trace of its own"
    await gateway.post(CLIENT)
    assert len(exporter.get_finished_spans()) == 1


async def test_a_client_may_ask_not_to_be_traced(exporter: InMemorySpanExporter) -> None:
    await traced(exporter).post(UNSAMPLED)
    assert exporter.get_finished_spans() == ()


async def test_without_tracing_nothing_is_passed_on() -> None:
    gateway = Gateway(None)
    assert await gateway.post(CLIENT) == 200
    assert gateway.asked[0].traceparent == ""
    tracing = start_tracing(TracingConfig(), "gateway")
    assert not tracing.is_on
    span = tracing.start("x", parent=from_traceparent(CLIENT))
    assert not span.is_recording()
    assert to_traceparent(span) == ""
    assert environment(TracingConfig(), "n") == {}


@pytest.mark.parametrize(
    ("path", "words", "status", "outcome", "is_error"),
    [
        ("/v1/chat/completions", "dies", 502, "server_error", True),
        ("/v1/models", "", 405, "", False),
        ("/health", "", 405, "", False),
    ],
)
async def test_a_span_tells_how_a_relayed_request_ended(
    exporter: InMemorySpanExporter, path: str, words: str, status: int, outcome: str, is_error: bool
) -> None:
    gateway = traced(exporter)
    assert await gateway.post(path=path, user=words) == status
    spans = exporter.get_finished_spans()
    if not outcome:
        assert spans == ()
        return
    assert attributes(spans[0])["http.response.status_code"] == status
    assert attributes(spans[0])["expertmesh.outcome"] == outcome
    assert spans[0].status.is_ok is not is_error


async def test_a_client_that_leaves_ends_its_span(exporter: InMemorySpanExporter) -> None:
    gateway = traced(exporter)
    asking = asyncio.create_task(gateway.post(user="never ends"))
    while not gateway.asked:
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    [span] = exporter.get_finished_spans()
    assert attributes(span)["expertmesh.outcome"] == "cancelled"


async def test_a_span_has_the_name_of_a_key_and_never_the_key(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    good, wrong, file = make_key(), make_key(), tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: me, sha256: {digest_of(good)}}}]")
    gateway = traced(exporter, keys_file=str(file))
    assert await gateway.post(key=good) == 200
    assert await gateway.post(key=wrong) == 401
    accepted, refused = exporter.get_finished_spans()
    assert attributes(accepted)["expertmesh.key_name"] == "me"
    assert attributes(refused)["expertmesh.outcome"] == "rejected"
    for span in (accepted, refused):
        for key in (good, wrong):
            assert key not in span.to_json()
            assert digest_of(key) not in span.to_json()


def test_vllm_is_told_to_speak_the_same_protocol() -> None:
    told = environment(TracingConfig(endpoint="http://collector"), "mine")
    assert told["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert told["OTEL_RESOURCE_ATTRIBUTES"] == "service.namespace=mine"

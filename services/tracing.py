"""One process's spans: where they go, and how a trace reaches the next process.

Off, which is the default, spans are OpenTelemetry's own that record nothing. The provider is ours
and not the library's global one, which vLLM sets in its processes.
"""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.config_watch import TracingConfig

TRACEPARENT = "traceparent"
EXPORT_INTERVAL_MS = 1000  # what a process that is killed may leave unsent
EXPORT_TIMEOUT_S = 2.0  # also what a collector that is away may hold up the end of a process
PREFIX = "expertmesh-"


class Tracing:
    """Makes spans; without a provider they record nothing."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("expertmesh")

    @property
    def is_on(self) -> bool:
        """Whether anything may be traced."""
        return self._provider is not None

    def start(
        self,
        name: str,
        *,
        parent: SpanContext | None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[SpanContext] = (),
        start_ns: int | None = None,
    ) -> Span:
        """A span that its caller ends; a new trace without a parent. start_ns: Unix time."""
        if self._provider is None:
            return trace.INVALID_SPAN
        return self._tracer.start_span(
            name,
            context=trace.set_span_in_context(
                trace.INVALID_SPAN if parent is None else trace.NonRecordingSpan(parent)
            ),
            kind=kind,
            attributes=attributes,
            links=[trace.Link(link) for link in links],
            start_time=start_ns,
        )

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


def start_tracing(config: TracingConfig, role: str) -> Tracing:
    """The tracing of this process, which sends from a thread of its own. role: names it."""
    if config.endpoint is None:
        return Tracing()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(config.endpoint, timeout=EXPORT_TIMEOUT_S)
    return tracing_to(
        BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_INTERVAL_MS), config, role
    )


def tracing_to(processor: SpanProcessor, config: TracingConfig, role: str) -> Tracing:
    """The same, with spans handed to `processor`; those that are left, when the process ends."""
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
        resource=Resource.create(
            {
                "service.name": PREFIX + role,
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        ),
    )
    provider.add_span_processor(processor)
    return Tracing(provider)


def environment(config: TracingConfig, name: str) -> dict[str, str]:
    """Variables for every actor of deployment `name`; the first is ours too, others are vLLM's."""
    if config.endpoint is None:
        return {}
    return {
        "OTEL_RESOURCE_ATTRIBUTES": f"service.namespace={name}",
        "OTEL_SERVICE_NAME": PREFIX + "attention",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_INTERVAL_MS),
    }


def inside(span: Span) -> AbstractContextManager[Span]:
    """While open, log lines name the span. It does not end, nor note what is raised."""
    return trace.use_span(span, record_exception=False, set_status_on_exception=False)


def to_traceparent(span: Span) -> str:
    """The W3C header by which another process goes on; empty if there is no trace."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
    return carrier.get(TRACEPARENT, "")


def from_traceparent(header: str | None) -> SpanContext | None:
    """What such a header says; None if it is missing or not valid."""
    if not header:
        return None
    found = TraceContextTextMapPropagator().extract({TRACEPARENT: header})
    context = trace.get_current_span(found).get_span_context()
    return context if context.is_valid else None


def unix_ns(monotonic_s: float) -> int:
    """A moment of this process's monotonic clock as spans have it."""
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)

"""Whose tokens are in the engine's step, and which steps and layers of it are traced.

A step serves many requests at once: its span is a child of the first traced one's and has links
to the others'. Without tracing all that is kept is a reference to vLLM's own list.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, SpanKind

from router.exchange import SendRows
from services.attention.layer_step import LayerStep
from services.attention.settings import RemoteSettings
from services.tracing import Tracing, from_traceparent, inside, start_tracing
from services.transport.base import RowsAnswer
from services.transport.origin import MAX_IDS, Origin

OURS = re.compile(r"[0-9a-f]{32}")
"""The gateway's request id, which vLLM puts something before and behind."""

MAX_NAMED = 8  # requests in one log line

Started = Iterable[tuple[str, str | None]]
"""vLLM's id of each request that is new in a step, and its traceparent, if it is traced."""


class Steps:
    """Used by the thread that runs the model."""

    def __init__(
        self, tracing: Tracing, *, step_interval: int, layer_interval: int, logs_rows: bool = False
    ) -> None:
        """logs_rows: shards are to log rows, so that they need request ids without traces too."""
        self._tracing = tracing
        self._step_interval = step_interval
        self._layer_interval = layer_interval
        self._logs_rows = logs_rows
        self._traced: dict[str, SpanContext] = {}  # by vLLM's request id
        self._running: Collection[str] = ()  # vLLM's ids of the step
        self._n_due = 0  # steps that might have been followed
        self._n_followed = 0
        self._span: Span = trace.INVALID_SPAN
        self._ids: tuple[str, ...] = ()
        self.is_followed = False  # this step; asked by every layer

    @classmethod
    def of(cls, settings: RemoteSettings) -> "Steps":
        """Those of an engine's process."""
        return cls(
            start_tracing(settings.tracing, "engine"),
            step_interval=settings.tracing.step_interval,
            layer_interval=settings.tracing.layer_interval,
            logs_rows=settings.logs.level == "debug",
        )

    @contextmanager
    def step(
        self, tokens: Mapping[str, int], *, started: Started, finished: Iterable[str]
    ) -> Iterator[None]:
        """While open, the engine's step runs. tokens: those of each request, by vLLM's id."""
        is_first = self._learn(started, finished)
        self._running = tokens
        traced = self._traced
        parents = [traced[name] for name in tokens if name in traced] if traced else []
        self.is_followed = bool(tokens) and self._is_due(bool(parents), is_first)
        try:
            if not self.is_followed:
                yield
                return
            self._ids = request_ids(tokens)
            self._span = self._start(tokens, parents)
            with inside(self._span):
                yield
        finally:
            if self.is_followed:
                self._span.end()
                self._span, self.is_followed = trace.INVALID_SPAN, False
            self._running = ()

    def follow(self, layer: int, its_step: LayerStep) -> "FollowedLayer | None":
        """In a followed step: one layer, if it is to be followed too; its rows say so then."""
        if (layer + self._n_followed - 1) % self._layer_interval:
            return None
        span: Span = trace.INVALID_SPAN
        if self._span.is_recording():
            attributes = {"expertmesh.layer": layer}
            parent = self._span.get_span_context()
            span = self._tracing.start(
                "layer", parent=parent, kind=SpanKind.CLIENT, attributes=attributes
            )
        context = span.get_span_context()
        its_step.origin = Origin(self._ids[:MAX_IDS], context.trace_id, context.span_id)
        return FollowedLayer(span)

    def named(self) -> str:
        """The requests of this step, for a log line."""
        ids = request_ids(self._running)
        more = f",+{len(ids) - MAX_NAMED}" if len(ids) > MAX_NAMED else ""
        return ",".join(ids[:MAX_NAMED]) + more or "-"

    def close(self) -> None:
        """Send what has not been sent."""
        self._tracing.close()

    def _learn(self, started: Started, finished: Iterable[str]) -> bool:
        """Returns whether a traced request is new."""
        if not self._tracing.is_on:
            return False
        for name in finished:
            self._traced.pop(name, None)
        is_first = False
        for name, traceparent in started:
            context = from_traceparent(traceparent)
            if context is not None and context.trace_flags.sampled:
                self._traced[name] = context
                is_first = True
        return is_first

    def _is_due(self, is_traced: bool, is_first: bool) -> bool:
        if not (is_traced or self._logs_rows):
            return False
        self._n_due += 1
        is_due = is_first or self._n_due % self._step_interval == 0
        self._n_followed += is_due
        return is_due

    def _start(self, tokens: Mapping[str, int], parents: list[SpanContext]) -> Span:
        if not parents:
            return trace.INVALID_SPAN
        return self._tracing.start(
            "step",
            parent=parents[0],
            links=parents[1:],
            attributes={
                "expertmesh.request_ids": self._ids,
                "expertmesh.requests": len(tokens),
                "expertmesh.tokens": sum(tokens.values()),
            },
        )


class FollowedLayer:
    """One layer's rows on their way."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def ended(
        self, marks: tuple[float, ...], answered: Sequence[tuple[SendRows, RowsAnswer]]
    ) -> None:
        """All rows are back.

        marks: seconds, between choosing, sending, shared experts, waiting and combining.
        """
        if not self._span.is_recording():
            return
        names = ("choose", "send", "shared", "wait", "combine")
        for name, before_s, after_s in zip(names, marks, marks[1:], strict=False):
            self._span.set_attribute(f"expertmesh.{name}_us", round((after_s - before_s) * 1e6))
        n_rows = sum(send.rows.pair_positions.size for send, _ in answered)
        self._span.set_attribute("expertmesh.rows", n_rows)
        self._span.set_attribute("expertmesh.shards", sorted({s.shard_id for s, _ in answered}))
        self._span.end()


def request_ids(names: Iterable[str]) -> tuple[str, ...]:
    """The gateway's ids in vLLM's, each once; those that are not from a gateway are left out."""
    found = (OURS.search(name) for name in names)
    return tuple(dict.fromkeys(match[0] for match in found if match))

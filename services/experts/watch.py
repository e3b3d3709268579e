"""What a shard tells of rows whose origin came with them: a span and a line for each request."""

import logging
import time

import numpy as np
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from services.tracing import Tracing, inside, unix_ns
from services.transport.base import Delivery, RowsRequest

log = logging.getLogger(__name__)

SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class ShardWatch:
    """Used by the worker's thread; costs nothing for rows of nobody."""

    def __init__(self, tracing: Tracing, shard_id: str) -> None:
        self._tracing = tracing
        self._shard_id = shard_id

    def served(
        self, delivery: Delivery, *, started_s: float, computed_s: float, batch_rows: int
    ) -> None:
        """Rows went through the kernel, `batch_rows` in all, from `started_s` on."""
        if delivery.request.origin is None:
            return
        request, span = delivery.request, self._span(delivery)
        queued_us = round(1e6 * (started_s - delivery.arrived_s))
        computed_us = round(1e6 * computed_s)
        if span.is_recording():
            span.set_attribute("expertmesh.queue_us", queued_us)
            span.set_attribute("expertmesh.compute_us", computed_us)
            span.set_attribute("expertmesh.batch_rows", batch_rows)
        with inside(span):
            log.debug(
                "rows served: request_ids=%s number=%s layer=%s rows=%s experts=%s queue_us=%s "
                "compute_us=%s batch_rows=%s",
                named(request),
                request.number,
                request.layer,
                request.pair_rows.size,
                np.unique(request.pair_experts).tolist(),
                queued_us,
                computed_us,
                batch_rows,
            )
        span.end(unix_ns(started_s + computed_s))

    def refused(self, delivery: Delivery, reason: str) -> None:
        """Rows went back as they came."""
        request, span = delivery.request, self._span(delivery)
        span.set_status(Status(StatusCode.ERROR, reason))
        with inside(span):
            log.debug(
                "rows refused: request_ids=%s number=%s layer=%s reason=%s",
                named(request),
                request.number,
                request.layer,
                reason,
            )
        span.end(unix_ns(time.monotonic()))

    def _span(self, delivery: Delivery) -> Span:
        request, origin = delivery.request, delivery.request.origin
        if origin is None or not origin.trace_id:
            return INVALID_SPAN
        return self._tracing.start(
            "shard",
            parent=SpanContext(origin.trace_id, origin.span_id, True, SAMPLED),
            kind=SpanKind.SERVER,
            start_ns=unix_ns(delivery.arrived_s),
            attributes={
                "expertmesh.shard": self._shard_id,
                "expertmesh.layer": request.layer,
                "expertmesh.rows": request.pair_rows.size,
                "expertmesh.experts": np.unique(request.pair_experts).tolist(),
                "expertmesh.request_ids": origin.request_ids,
            },
        )


def named(request: RowsRequest) -> str:
    """Whose rows they are, for a line; "-": nobody said."""
    return ",".join(request.origin.request_ids) or "-" if request.origin else "-"

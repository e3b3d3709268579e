"""The sections `logs` and `tracing`: what one can follow a single request by."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from services.config_base import AtLeastOne, Section


class LogsConfig(Section):
    # How our actors write their lines. text: for people; json: one object a line, with the fields
    # of the line and, within a traced request, trace_id and span_id.
    format: Literal["text", "json"] = "text"
    # The least important lines that are written. debug: also what shards refuse, and the layers
    # that they compute in one engine step of tracing.step_interval.
    level: Literal["debug", "info", "warning", "error"] = "info"


class TracingConfig(Section):
    # URL of a collector that takes OpenTelemetry's traces over HTTP (OTLP, protobuf), such as
    # http://127.0.0.1:4318; without a path it gets /v1/traces. None: nothing is traced.
    endpoint: str | None = None
    # Part of the requests that are traced, 0 to 1. A request that comes with a traceparent header
    # is traced if and only if that says so. 1: whoever names a collector wants to see something.
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    # Of the engine steps that traced requests take part in, one in so many has spans, >= 1; so
    # has each one's first. 16: a long answer is some tens of steps, not thousands.
    step_interval: AtLeastOne = 16
    # In such a step, one MoE layer in so many has spans, >= 1, another first one each time, so
    # that all are seen in the end. 4: a model of 60 layers gives 15 of them a step.
    layer_interval: AtLeastOne = 4

    @field_validator("endpoint")
    @classmethod
    def _whole_url(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        try:
            url = urlsplit(endpoint)
            is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise ValueError(
                f"endpoint is {endpoint!r}, not a URL of a collector; write it like "
                "http://127.0.0.1:4318"
            )
        if url.username is not None or url.query or url.fragment:
            raise ValueError(
                "endpoint may hold scheme, host, port and path only: it is shown in logs and "
                "handed to every actor; let a collector beside the cluster add credentials"
            )
        return endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"

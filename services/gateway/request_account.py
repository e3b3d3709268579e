"""What is told of one relayed request: the meter's counts and, if it is traced, a span.

Of who asked and for what there is the key's name and the model's: never a key, a prompt or an
answer.
"""

import uuid

from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.requests import Request

from monitoring.meter import Call
from services.gateway.routes import ONE_MODEL, RELAYED_PATHS
from services.tracing import TRACEPARENT, Tracing, from_traceparent, to_traceparent

MAX_MODEL = 100  # characters of a name that the client may have made up
LEFT = 499  # as nginx has it: the client did not wait for a status


class RequestAccount:
    """Its span is a child of the client's own, where the client sent one."""

    def __init__(
        self, call: Call, tracing: Tracing, request: Request, request_id: str = ""
    ) -> None:
        """call: the meter's. request_id: that of a gateway before, else it gets a new one."""
        self.request_id = request_id or uuid.uuid4().hex
        self._call = call
        path = request.scope["path"]
        theirs = request.headers.getlist(TRACEPARENT) if tracing.is_on else []
        route = path if path in RELAYED_PATHS else ONE_MODEL + "{model}"
        self.span = tracing.start(
            f"{request.method} {route}",
            parent=from_traceparent(theirs[0]) if len(theirs) == 1 else None,
            kind=SpanKind.SERVER,
            attributes={
                "expertmesh.request_id": self.request_id,
                "http.request.method": request.method,
                "http.route": route,
            },
        )
        self.traceparent = to_traceparent(self.span) if tracing.is_on else ""
        self._has_ended = False

    def asked(self, *, key_name: str, model: object) -> None:
        """Who asked for what. key_name: not the key."""
        self.span.set_attribute("expertmesh.key_name", key_name)
        if isinstance(model, str):
            self.span.set_attribute("gen_ai.request.model", model[:MAX_MODEL])

    def answered(self, *, prompt_tokens: int, output_tokens: int) -> None:
        """Totals so far."""
        if output_tokens:
            self._call.first_token()
        if self.span.is_recording():
            self.span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
            self.span.set_attribute("gen_ai.usage.output_tokens", output_tokens)

    def ended(self, outcome: str, status: int) -> None:
        """It is over; only the first call counts. outcome: as the meter has it."""
        self._call.ended(outcome)
        if self._has_ended:
            return
        self._has_ended = True
        self.span.set_attribute("http.response.status_code", status)
        self.span.set_attribute("expertmesh.outcome", outcome)
        if outcome == "server_error":
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()

"""A collector of OpenTelemetry's traces on loopback: OTLP over HTTP, and it keeps everything."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """One span as it arrived."""

    name: str
    service: str
    namespace: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: a root
    took_s: float


class Collector:
    """Listens from the start."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        kept = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kept.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What to configure as tracing.endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self) -> list[Seen]:
        """What has come so far."""
        return [span for body in list(self.bodies) for span in _read(body)]

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


def _read(body: bytes) -> list[Seen]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        words = {a.key: a.value.string_value for a in resource.resource.attributes}
        found += [
            Seen(
                span.name,
                words.get("service.name", ""),
                words.get("service.namespace", ""),
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                (span.end_time_unix_nano - span.start_time_unix_nano) * 1e-9,
            )
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    return found

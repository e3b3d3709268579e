"""The order in which a request is looked at: route, key, readiness, body, limits; then relayed."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

from opentelemetry.trace import INVALID_SPAN
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from monitoring.meter import Meter
from services.gateway.admission import Admission
from services.gateway.body import parse_body, read_body
from services.gateway.bypass import BEGUN, NOTHING_BEGUN, StreamLine, find_begun
from services.gateway.errors import Refusal
from services.gateway.full import FULL, full, refused_in
from services.gateway.keys import Key, Keys
from services.gateway.limits import Limiter
from services.gateway.relay import Ask
from services.gateway.relayed_response import Job, RelayedResponse
from services.gateway.request_account import LEFT, RequestAccount
from services.gateway.routes import MAX_SHOWN, Route, find_route
from services.gateway.settings import GatewaySettings
from services.messages import GatewayNews, GatewayReport
from services.relayed import RelayedRequest
from services.tracing import Tracing, inside

log = logging.getLogger(__name__)

NOT_READY_RETRY_S = 5.0
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
CLIENT_ID = re.compile(r"^[A-Za-z0-9._:-]{1,128}$")
TIMEOUT_HEADER = "x-request-timeout"

Own = Callable[[Request], Awaitable[Response]]


def check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Serve's proxy has no limit of its own. Raises Refusal: 431."""
    size = sum(len(name) + len(value) for name, value in headers if name.lower() != BEGUN)
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise Refusal(
            431,
            f"{len(headers)} headers of {size} bytes; the limits are {MAX_HEADERS} and "
            f"{MAX_HEADER_BYTES}. Send fewer.",
        )


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raises Refusal 415 if the body is not plain JSON."""
    content_type = headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise Refusal(
            415,
            f"Content-Type is {content_type[:MAX_SHOWN]!r}; send the body as JSON with "
            "Content-Type: application/json.",
        )
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise Refusal(
            415,
            f"Content-Encoding is {encoding[:MAX_SHOWN]!r}; send the body as it is, without one.",
        )


class Front:
    """One gateway without the cluster; everything that it needs of that is given."""

    def __init__(
        self,
        settings: GatewaySettings,
        ask: Ask,
        own: Mapping[str, Own],
        tracing: Tracing | None = None,
        streams: StreamLine | None = None,
        *,
        gateway_id: str = "",
    ) -> None:
        """own: path → what answers it here. streams: to Serve's proxies, past Ray."""
        self._gateway_id = gateway_id
        self.settings = settings
        self.streams = streams
        self._tracing = tracing or Tracing()
        self.keys = Keys(settings.keys_file)
        self.limiter = Limiter(settings.key_limits)
        self.admission, self._side_door = (
            Admission(
                max_running=settings.ongoing_per_engine,
                max_waiting=settings.max_waiting,
                max_wait_s=settings.max_wait_s,
            )
            for _ in range(2)
        )
        self.meter = Meter()
        self.ask = ask
        self._own = {"/health": self._health, "/ready": self._ready, **own}
        self._news = GatewayNews(problem="the controller has not answered yet")

    async def answer(self, request: Request) -> Response:
        """One request. Raises nothing that a request can cause."""
        started_s = time.monotonic()
        key_name, account = "-", None
        try:
            self.meter.refused(refused_in(request.scope["headers"]))
            check_headers(request.scope["headers"])
            route = find_route(request.method, request.scope["path"])
            if route.is_relayed:
                call = self.meter.began(route.meter)
                to = self.streams.find(request.scope["headers"]) if self.streams else None
                request_id, sent = find_begun(request.scope["headers"]) if to else NOTHING_BEGUN
                account = RequestAccount(call, self._tracing, request, request_id)
            key = self.keys.check(request.scope["headers"], route.scope)
            key_name = key.name
            if account is not None:
                relayed = await self._prepare(request, route, key, account)
                job = Job(relayed, key, route.generates, account, to, sent)
                response: Response = RelayedResponse(self, job)
            else:
                response = await self._own[request.scope["path"]](request)
        except (Refusal, ClientDisconnect) as error:
            refusal = error if isinstance(error, Refusal) else Refusal(400, "the client left.")
            response = refusal.response(request.scope["path"])
            if refusal.full_s:
                told = full(self._gateway_id, self._news.gateways, refusal.full_s)
                response.headers[FULL.decode()] = told
            if account is not None:
                if isinstance(error, ClientDisconnect):
                    account.ended("cancelled", LEFT)
                else:
                    account.ended(Meter.outcome_of(refusal.status), refusal.status)
        with inside(account.span if account else INVALID_SPAN):
            request_id = account.request_id if account else uuid.uuid4().hex
            self._log(request, response, request_id, key_name=key_name, started_s=started_s)
        return response

    def _log(
        self,
        request: Request,
        response: Response,
        request_id: str,
        *,
        key_name: str,
        started_s: float,
    ) -> None:
        theirs = request.headers.get("x-request-id", "")  # the client's, or Serve's
        log.info(
            "request: request_id=%s client_request_id=%s key=%s method=%s path=%r status=%s "
            "prepared_ms=%.1f",
            request_id,
            theirs if CLIENT_ID.match(theirs) else "-",
            key_name,
            request.method,
            request.scope["path"][:MAX_SHOWN],
            response.status_code,
            1000 * (time.monotonic() - started_s),
        )

    def door(self, *, generates: bool) -> Admission:
        """What asks for no token, as a list of models or of a prompt's tokens, has its own."""
        return self.admission if generates else self._side_door

    def hear(self, news: GatewayNews, now_s: float) -> None:
        """What the controller says."""
        self._news = news
        room = max(1, news.engines) * self.settings.ongoing_per_engine
        self.admission.max_running = -(-room // max(1, news.gateways))
        self.admission.is_closing = self._side_door.is_closing = news.is_closing
        self.admission.let_in()
        self.limiter.learn(news.others, self.keys.by_name(), now_s)
        self.keys.reread()

    def report(self) -> GatewayReport:
        """What the controller is told."""
        return GatewayReport(
            self._gateway_id,
            self.limiter.totals(),
            self.meter.account(self._gateway_id, self.admission.waiting),
            self.admission.running,
            self.admission.waiting,
        )

    def is_quiet_since(self, n_requests: int) -> bool:
        """Whether no request has come since there were so many, and no news is waited for."""
        return not self._news.problem and self.meter.n_requests == (n_requests, 0)

    async def _prepare(
        self, request: Request, route: Route, key: Key, account: RequestAccount
    ) -> RelayedRequest:
        """What to relay; if it generates, it counts against the key's limits. Raises Refusal."""
        timeout_s = self._timeout_s(request)
        if self._news.problem:
            raise self._not_ready()
        body, settings, values = b"", self.settings, {}
        self.door(generates=route.generates).check(key.name)
        if request.method == "POST":
            check_encoding(request.headers)
            body = await read_body(
                request, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
            )
            values = parse_body(
                body, max_n=settings.max_n, max_output_tokens=settings.max_output_tokens
            )
        account.asked(key_name=key.name, model=values.get("model"))
        relayed = RelayedRequest(
            request_id=account.request_id,
            method="GET" if request.method == "HEAD" else request.method,  # the server drops it
            path=request.scope["path"],
            query=request.scope["query_string"],
            body=body,
            content_type="application/json" if body else "",
            expires_s=time.time() + timeout_s,
            max_prompt_tokens=settings.max_prompt_tokens,
            traceparent=account.traceparent,
        )
        if route.generates:
            self.limiter.admit(key, time.monotonic())
        return relayed

    def _timeout_s(self, request: Request) -> float:
        limit_s = self.settings.request_timeout_s
        asked = request.headers.get(TIMEOUT_HEADER)
        if asked is None:
            return limit_s
        try:
            timeout_s = float(asked)
        except ValueError:
            timeout_s = -1.0
        if not 0 < timeout_s < float("inf"):
            raise Refusal(
                400, f"{TIMEOUT_HEADER} is {asked[:40]!r}; send a number of seconds above 0."
            )
        return min(timeout_s, limit_s)

    def _not_ready(self) -> Refusal:
        return Refusal(503, f"not ready: {self._news.problem}.", retry_after_s=NOT_READY_RETRY_S)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        if self.admission.is_closing:
            raise Refusal(503, "not ready: stopping.", retry_after_s=NOT_READY_RETRY_S)
        if self._news.problem:
            raise self._not_ready()
        return JSONResponse({"status": "ready", "engines": self._news.engines})

"""Runs vLLM's own HTTP routes inside an attention replica, on requests that gateways relay."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from starlette.types import Message

from router.errors import PeerLost
from services.attention.deadline import until_lost
from services.attention.feed import Stranded
from services.attention.generation import Generation, current
from services.errors import error_body, error_event
from services.gateway.routes import ONE_MODEL, RELAYED_PATHS
from services.relayed import Answer, Head, Part, RelayedRequest
from services.tracing import TRACEPARENT, Tracing, from_traceparent, inside, to_traceparent

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at whether the gateway lives
LEAVE_S = 2.0  # for the routes to clear up
WAITING = 64  # parts that wait for the gateway before the routes are held up
TOO_LATE = "the deadline was over before the engine saw it."
JSON_HEADERS = ((b"content-type", b"application/json"),)


class Routes:
    """vLLM's application behind a function call."""

    def __init__(
        self,
        app: Any,
        *,
        is_dead: Callable[[], bool],
        stranded: Callable[[], Stranded | None],
        lost_gateways: Callable[[], frozenset[str]],
        deadline_s: float,
        tracing: Tracing | None = None,
    ) -> None:
        """is_dead: whether the engine's process has ended; stranded: what it waits for now, which

        a request does for `deadline_s`. lost_gateways: whose requests end, for nobody waits.
        """
        self._is_dead = is_dead
        self.described = describe(app, RELAYED_PATHS)
        hide_folder(app)
        self._app = app
        self._stranded = stranded
        self._lost_gateways = lost_gateways
        self._deadline_s = deadline_s
        self._tracing = tracing or Tracing()

    async def answer(self, request: RelayedRequest) -> AsyncGenerator[Answer, None]:
        """A head, then parts. Closing it ends the request. Raises PeerLost if the engine dies."""
        if time.time() > request.expires_s:
            yield Head(504, JSON_HEADERS)
            yield Part(error_body(504, TOO_LATE, path=request.path))
            return
        if request.path not in self.described["paths"] and not request.path.startswith(ONE_MODEL):
            yield Head(404, JSON_HEADERS)
            yield Part(error_body(404, f"this model has no {request.path}.", path=request.path))
            return
        answers = until_lost(self._run(request), self._stranded, self._deadline_s)
        has_begun = False
        async with aclosing(answers):
            async for answer in answers:
                if isinstance(answer, Head | Part):
                    has_begun |= isinstance(answer, Part)  # a head alone has not left the gateway
                    yield answer
                    continue
                if not has_begun:
                    yield Head(503, (*JSON_HEADERS, (b"retry-after", b"5")))
                say = error_event if has_begun else error_body
                yield Part(say(503, answer, path=request.path))

    async def _run(self, request: RelayedRequest) -> AsyncGenerator[Answer, None]:
        answers: asyncio.Queue[Answer | None] = asyncio.Queue(WAITING)
        span = self._tracing.start(
            "attention",
            parent=from_traceparent(request.traceparent),
            kind=SpanKind.SERVER,
            attributes={"expertmesh.request_id": request.request_id},
        )
        generation = Generation(
            replay=request.resume.groups if request.resume else (),
            max_prompt_tokens=request.max_prompt_tokens,
            traceparent=to_traceparent(span) if span.is_recording() else "",
        )
        left = asyncio.Event()
        with inside(span):
            task = asyncio.create_task(self._call(request, generation, answers, left))
        try:
            while (answer := await self._next(answers, request)) is not None:
                yield answer
            if not task.done() and request.gateway_id in self._lost_gateways():
                log.warning("its gateway died: request_id=%s", request.request_id)
                return
            await task
            if self._is_dead():
                raise PeerLost("the engine died")
        finally:
            left.set()  # vLLM's routes abort a request when they are told that its client left,
            await asyncio.wait({task}, timeout=LEAVE_S)
            task.cancel()  # not when they are cancelled themselves
            with suppress(asyncio.CancelledError):
                await task
            span.set_attribute("gen_ai.usage.input_tokens", generation.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", generation.output_tokens)
            span.end()

    async def _next(
        self, answers: "asyncio.Queue[Answer | None]", request: RelayedRequest
    ) -> Answer | None:
        """None at the end, and when the gateway that asked is dead."""
        while request.gateway_id not in self._lost_gateways():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    return await answers.get()
        return None

    async def _call(
        self,
        request: RelayedRequest,
        generation: Generation,
        answers: "asyncio.Queue[Answer | None]",
        left: asyncio.Event,
    ) -> None:
        current.set(generation)
        incoming: list[Message] = [{"type": "http.request", "body": request.body}]

        async def receive() -> Message:
            if incoming:
                return incoming.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if left.is_set() or self._is_dead():
                return  # if dead, another replica answers, not vLLM's words about the death
            if message["type"] == "http.response.start":
                await answers.put(Head(message["status"], tuple(message["headers"])))
            elif body := message.get("body", b""):
                await answers.put(
                    Part(
                        body,
                        generation.prompt_tokens,
                        generation.output_tokens,
                        generation.can_resume,
                        generation.take(),
                    )
                )

        try:
            span = trace.get_current_span()
            await self._app(_scope(request, to_traceparent(span)), receive, send)
        except Exception:  # vLLM's handlers have answered already, where that could be done
            log.exception("request failed: request_id=%s", request.request_id)
        if not left.is_set():
            await answers.put(None)


def _scope(request: RelayedRequest, traceparent: str) -> dict[str, Any]:
    headers = [
        (b"host", b"attention"),
        (b"x-request-id", request.request_id.encode()),
        (b"content-length", str(len(request.body)).encode()),
    ]
    if request.content_type:
        headers.append((b"content-type", request.content_type.encode("latin-1")))
    if traceparent:  # vLLM's own span goes below ours; one that is not sampled says so
        headers.append((TRACEPARENT.encode(), traceparent.encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }


def hide_folder(app: Any) -> None:
    """Have `/v1/models` say a model's name where vLLM names its folder, which is the host's."""
    for model in app.state.openai_serving_models.base_model_paths:
        model.model_path = model.name


def describe(app: Any, paths: frozenset[str]) -> dict[str, Any]:
    """vLLM's OpenAPI description of those of the paths that this model has."""
    described: dict[str, Any] = app.openapi()
    described["info"] = {"title": "ExpertMesh", "version": described["info"]["version"]}
    described["paths"] = {p: d for p, d in described["paths"].items() if p in paths}
    return described

"""The gateway's Serve deployment: `Front`, and what ties it to the cluster."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle
from starlette.responses import JSONResponse, Response

from router.errors import CapacityError, EngineError
from services.answers import AnswerDesk
from services.cluster import ControllerClient, node_name, replica_name, tcp_host
from services.config import DeploymentConfig
from services.gateway.ask import ask_through
from services.gateway.bypass import StreamLine
from services.gateway.errors import BROKEN, Refusal
from services.gateway.front import Front
from services.gateway.one_call import DEPLOYMENT, answer_in_one
from services.gateway.settings import gateway_settings
from services.lifecycle import end_with_parent
from services.live.feed import LiveFeed
from services.live.page import page_routes
from services.logs import log_to_stderr
from services.metrics_endpoint import MetricsEndpoint
from services.paths import run_dir
from services.tracing import start_tracing

log = logging.getLogger(__name__)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
ANSWER_S = 10.0
T = TypeVar("T")


class Gateway:
    """One gateway. Binding the pool and the controller makes them part of the application."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: DeploymentConfig,
        *,
        attention: DeploymentHandle,
        controller: DeploymentHandle,
        pool: DeploymentHandle,
    ) -> None:
        end_with_parent()
        log_to_stderr(config.logs)
        self._config = config
        self._attention = attention
        self._bound = (controller, pool)
        self._controller = ControllerClient(config.name)
        self._id = replica_name()
        metrics = MetricsEndpoint(self._controller, per_expert=config.monitoring.per_expert)
        feed = LiveFeed(self._controller, lambda: self._front.admission.is_closing)
        own = {
            "/openapi.json": self._openapi,
            "/metrics": metrics.answer,
            "/admin/status": self._status,
            "/admin/rebalance": self._rebalance,
            **page_routes(feed),
        }
        desk = AnswerDesk(
            self._id,
            host=node_name(),
            run_dir=run_dir(config),
            tcp_host=tcp_host(config),
            keys=await self._controller.keys(),
        )
        self._tracing = start_tracing(config.tracing, "gateway")
        ask = ask_through(attention, desk, self._id)
        streams = StreamLine(node_name())
        self._front = Front(
            gateway_settings(config), ask, own, self._tracing, streams, gateway_id=self._id
        )
        self._tasks = [
            asyncio.create_task(self._follow(), name="follow"),
            asyncio.create_task(desk.serve(), name="answers"),
        ]

    async def any(self, request: Request) -> Response:
        """Every request."""
        return await self._front.answer(request)

    async def in_one(self, packed: bytes) -> bytes:
        """A request that the proxy's middleware sends in one call."""
        return await answer_in_one(self._front, packed)

    async def check_health(self) -> None:
        """Serve restarts the gateway when this raises."""
        for task in self._tasks:
            if task.done():
                raise EngineError(f"task {task.get_name()} ended: {task.exception()!r}")

    async def __del__(self) -> None:
        """Serve's word to stop, when all requests have ended, and Python's."""
        if hasattr(self, "_tracing"):
            await asyncio.to_thread(self._tracing.close)

    async def _follow(self) -> None:
        control = self._config.controller
        while True:
            n_requests, _ = self._front.meter.n_requests
            try:
                news = await self._controller.hear_gateway(self._front.report())
                self._front.hear(news, time.monotonic())
            except Exception as error:  # the controller may be away; traffic goes on as it was
                log.warning("controller not reached: %s", error)
            for _ in range(control.quiet_intervals):
                await asyncio.sleep(control.report_interval_s)
                if not self._front.is_quiet_since(n_requests):
                    break

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(await in_time(self._attention.describe.remote(), "attention replica"))

    async def _status(self, request: Request) -> Response:
        status = await in_time(self._controller.status(), "controller")
        return JSONResponse(asdict(status))

    async def _rebalance(self, request: Request) -> Response:
        try:
            return JSONResponse(asdict(await self._controller.rebalance()))
        except CapacityError as error:
            raise Refusal(503, str(error), retry_after_s=5) from error


async def in_time(asked: Awaitable[T], who: str) -> T:
    """The answer of another part. Raises Refusal, 503, if there is none, whatever Serve raises."""
    try:
        return await asyncio.wait_for(asked, ANSWER_S)
    except Exception as error:
        log.warning("no answer: from=%s %r", who, error)
        raise Refusal(503, f"the {who} does not answer.", retry_after_s=5) from error


async def broken(request: Request, error: Exception) -> Response:
    """Our own mistakes, which are logged by whoever called this, in the clients' shape."""
    return BROKEN.response(request.scope["path"])


def build_gateway(
    config: DeploymentConfig,
    *,
    attention: Application,
    controller: Application,
    pool: Application,
    options: dict[str, Any],
) -> Application:
    """The application's ingress: one route for all paths, so that every request is looked at."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(Exception, broken)
    app.api_route("/{path:path}", methods=METHODS)(Gateway.any)
    deployment = serve.deployment(serve.ingress(app)(Gateway), name=DEPLOYMENT, **options)
    return deployment.bind(config, attention=attention, controller=controller, pool=pool)

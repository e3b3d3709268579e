"""The gateway's front and the live page over HTTP in this process, without engines or a cluster."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from deploy.free_port import free_port
from services.config import DeploymentConfig
from services.gateway.front import Front
from services.gateway.settings import gateway_settings
from services.live.feed import LiveFeed, LiveSource
from services.live.page import page_routes
from services.relayed import Head, Part, RelayedRequest


async def no_engine(request: RelayedRequest) -> AsyncGenerator[Head | Part, None]:
    """No test asks for tokens."""
    yield Head(503, ())


def page_front(source: LiveSource, keys_file: Path | None = None) -> tuple[Front, LiveFeed]:
    """A gateway that has only the page."""
    feed = LiveFeed(source, interval_s=0.25)
    settings = replace(gateway_settings(DeploymentConfig()), keys_file=keys_file)
    return Front(settings, no_engine, page_routes(feed)), feed


class LiveServer:
    """Serves in a thread, on the same port each time that it is started."""

    def __init__(self, source: LiveSource, keys_file: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/dashboard"
        self._given = (source, keys_file)
        self.start()

    def start(self) -> None:
        """Serve; returns when requests are answered."""
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(up)))
        self._thread.start()
        assert up.wait(20)

    def stop(self) -> None:
        """As a gateway that dies: open streams end."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    async def _serve(self, up: threading.Event) -> None:
        front, self.feed = page_front(*self._given)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await front.answer(Request(scope, receive))
            await response(scope, receive, send)

        config = uvicorn.Config(app, "127.0.0.1", self.port, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0.01)
        up.set()
        await serving

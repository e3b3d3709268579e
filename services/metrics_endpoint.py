"""`GET /metrics`: the controller has everybody's figures, so any gateway answers alike."""

import asyncio
import gzip
import logging
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from monitoring.exposition import exposition
from monitoring.snapshot import PerExpert, Snapshot

log = logging.getLogger(__name__)

GZIP_LEVEL = 5
TIMEOUT_S = 5.0  # Prometheus waits for ten by default


class MetricsSource(Protocol):
    """What `services.cluster.ControllerClient` can do."""

    async def metrics(self, timeout_s: float) -> Snapshot:
        """All figures."""


class MetricsEndpoint:
    """Answers one route."""

    def __init__(self, controller: MetricsSource, *, per_expert: PerExpert) -> None:
        self._controller = controller
        self._per_expert = per_expert

    async def answer(self, request: Request) -> Response:
        """Always 200: a controller that is away is a figure too."""
        text = await self.text()
        headers = {"vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            text = await asyncio.to_thread(gzip.compress, text, GZIP_LEVEL)
            headers["content-encoding"] = "gzip"
        return Response(text, media_type=CONTENT_TYPE_LATEST, headers=headers)

    async def text(self) -> bytes:
        """What is scraped."""
        snapshot: Snapshot | None = None
        try:
            snapshot = await self._controller.metrics(TIMEOUT_S)
        except Exception as error:  # Serve raises many kinds
            log.warning("no metrics: the controller does not answer: %s", error)
        return await asyncio.to_thread(exposition, snapshot, self._per_expert)

"""What a gateway answers under `/dashboard`."""

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from monitoring.page import EVENTS, Asset, read_assets
from services.live.feed import LiveFeed

Own = Callable[[Request], Awaitable[Response]]

# The page loads only what this gateway ships, may not be framed, and sends its key nowhere else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def page_routes(feed: LiveFeed) -> dict[str, Own]:
    """Path → what answers it."""
    assets = {path: partial(_asset, asset) for path, asset in read_assets().items()}
    return {**assets, EVENTS: partial(_events, feed)}


async def _asset(asset: Asset, request: Request) -> Response:
    """Kept by the browser, which asks each time whether it is still the same."""
    headers = {**SAFE, "etag": asset.etag, "cache-control": "no-cache"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers["content-type"] = asset.content_type
    return Response(asset.body if request.method == "GET" else b"", headers=headers)


async def _events(feed: LiveFeed, request: Request) -> Response:
    headers = {**SAFE, "cache-control": "no-store", "x-accel-buffering": "no"}
    if request.method == "HEAD":
        return Response(headers=headers, media_type="text/event-stream")
    feed.check()
    return StreamingResponse(feed.watch(), headers=headers, media_type="text/event-stream")

"""The live page's files, which a gateway serves from memory under fixed paths.

No path of a request reaches the file system: what is not listed here does not exist.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

STATIC = Path(__file__).parent / "static"
PAGE = "/dashboard"
EVENTS = f"{PAGE}/events"
SCRIPT, STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
TYPES = {".html": "text/html; charset=utf-8", ".js": SCRIPT, ".css": STYLE, ".svg": "image/svg+xml"}
NAMES = (
    *("charts.js", "colours.js", "heatmap.js", "icon.svg", "log.js", "main.js", "shards.js"),
    *("stream.js", "style.css", "tiles.js"),
    *("vendor/uplot/uPlot.iife.min.js", "vendor/uplot/uPlot.min.css"),
)
FILES = {PAGE: "index.html", **{f"{PAGE}/{name}": name for name in NAMES}}
"""Path of the request → file in `static/`."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. etag: changes with its content."""

    body: bytes
    content_type: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """By path. Raises OSError if one is not there."""
    return {path: _read(STATIC / name) for path, name in FILES.items()}


def _read(file: Path) -> Asset:
    body = file.read_bytes()
    return Asset(body, TYPES[file.suffix], f'"{sha256(body).hexdigest()[:16]}"')

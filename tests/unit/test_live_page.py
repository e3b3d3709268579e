"""The page's files and who may read its stream."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from monitoring.page import FILES, STATIC, TYPES
from services.gateway.keys import digest_of
from tests.support.live_server import page_front
from tests.support.scene import Scene

Headers = Sequence[tuple[bytes, bytes]]
KEYS = {"em-admin": "admin", "em-metrics": "metrics", "em-use": "use"}


async def ask(
    path: str, headers: Headers = (), method: str = "GET", keys_file: Path | None = None
) -> Response:
    front, _ = page_front(Scene(), keys_file)
    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    return await front.answer(Request({**scope, "headers": list(headers)}))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    entries = [
        f"  - {{name: {s}, sha256: {digest_of(key)}, scopes: [{s}]}}" for key, s in KEYS.items()
    ]
    file = tmp_path / "keys.yaml"
    file.write_text("\n".join(["keys:", *entries]))
    return file


def test_every_file_that_can_be_served_is_listed() -> None:
    there = {file for file in STATIC.rglob("*") if file.suffix in TYPES}
    assert there == {STATIC / name for name in FILES.values()}


def test_the_page_asks_for_nothing_else() -> None:
    text = (STATIC / "index.html").read_text()
    asked = re.findall(r'(?:src|href)="([^#"]+)"', text)
    for script in STATIC.glob("*.js"):
        asked += [
            f"dashboard/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())
        ]
    assert {f"/{path}" for path in asked} <= FILES.keys()
    assert "style=" not in text, "the content security policy refuses it"
    ours = [text, *(file.read_text() for file in STATIC.glob("*.*"))]
    assert [found for one in ours for found in re.findall(r"https?://\S+", one)] == [
        'http://www.w3.org/2000/svg"'
    ]


@pytest.mark.parametrize("path", FILES)
async def test_a_file_is_sent_as_what_it_is(path: str, keys_file: Path) -> None:
    answer = await ask(path, keys_file=keys_file)
    assert (answer.status_code, answer.body) == (200, (STATIC / FILES[path]).read_bytes())
    assert answer.headers["content-type"] == TYPES[Path(FILES[path]).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src")
    again = await ask(path, [(b"if-none-match", answer.headers["etag"].encode())])
    assert (again.status_code, again.body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["/dashboard/../page.py", "/dashboard/%2e%2e/page.py", "/dashboard//etc/passwd", "/dashboard/"],
)
async def test_no_path_leads_out_of_the_folder(path: str) -> None:
    assert (await ask(path)).status_code == 404


async def test_only_reading_is_allowed() -> None:
    assert (await ask("/dashboard", method="POST")).status_code == 405
    assert (await ask("/dashboard", method="HEAD")).body == b""


@pytest.mark.parametrize(
    ("key", "status"),
    [(None, 401), ("em-wrong", 401), ("em-use", 403), ("em-metrics", 403), ("em-admin", 200)],
)
async def test_the_stream_is_for_admin_keys(key: str | None, status: int, keys_file: Path) -> None:
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    assert (await ask("/dashboard/events", headers, keys_file=keys_file)).status_code == status


async def test_where_no_keys_are_set_anyone_may_watch() -> None:
    answer = await ask("/dashboard/events")
    assert isinstance(answer, StreamingResponse)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"

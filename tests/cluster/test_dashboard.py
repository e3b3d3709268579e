"""The live page of the running application: traffic, a shard that is killed, and its successor."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.live.feed import MAX_VIEWERS
from tests.cluster.conftest import MODEL, Application, Applications
from tests.support.browser import BINARY, Browser

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BINARY is None, reason="no chromium: apt-get install chromium"),
]
STREAMS = 4
SUCCESSOR_S = 400.0
TILE = "document.querySelector('#tiles > :nth-child({number}) dd').innerText"


class Traffic:
    """Clients who ask one thing after the other."""

    def __init__(self, url: str) -> None:
        self.ends: list[tuple[int, bool]] = []  # status, and whether it was told to the end
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        content = f"Tell me a story about the number {number}."
        body = {"model": MODEL, "max_tokens": 24, "stream": True}
        body |= {"messages": [{"role": "user", "content": content}]}
        while not self._over.is_set():
            answer = httpx.post(f"{self._url}/v1/chat/completions", json=body, timeout=120)
            self.ends.append((answer.status_code, answer.text.endswith("data: [DONE]\n\n")))

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def app(applications: Applications) -> Application:
    return applications.twice()


@pytest.fixture
def traffic(app: Application) -> Iterator[Traffic]:
    running = Traffic(app.url)
    yield running
    running.end()


def level(browser: Browser) -> str:
    return str(browser.run("document.body.dataset.level"))


def test_the_page_shows_load_a_death_and_the_repair(
    app: Application, browser: Browser, screenshots: Path, traffic: Traffic
) -> None:
    browser.look(1280)
    browser.open(f"{app.url}/dashboard")
    browser.wait_for("document.body.dataset.messages > 15", 60)
    browser.wait_for(f"parseFloat({TILE.format(number=1)}) > 0", 60)
    browser.wait_for(f"parseFloat({TILE.format(number=2)}) > 0", 60)
    assert level(browser) == "good", browser.text("#alert")
    assert "Whole" in browser.text("#level")
    shards = browser.run("[...document.querySelectorAll('#shards button')].map(b => b.innerText)")
    assert len(shards) == 2
    assert browser.text("#shards").count("0–7 of every layer") == 2
    browser.run("document.getElementById('heat-marks').focus()")
    browser.key("ArrowRight")
    browser.wait_for("document.getElementById('readout').innerText.startsWith('Layer 0, expert 0')")
    assert all(shard in browser.text("#readout") for shard in shards)
    browser.screenshot(screenshots / "dashboard-load.png")
    browser.look(400, scheme="dark")
    browser.screenshot(screenshots / "dashboard-400-dark.png")
    browser.look(1280)

    with app.no_new_processes():
        os.kill(int(shards[0].split("-")[0]), signal.SIGKILL)
        alert = "document.getElementById('alert').innerText.includes"
        browser.wait_for(f"{alert}('1 of 2 shards there')")
        browser.wait_for(f"{alert}('240 experts are below the redundancy of 2')")
        assert level(browser) == "degraded"
        browser.screenshot(screenshots / "dashboard-shard-lost.png")
        log = "document.getElementById('log').innerText"
        browser.wait_for(f"{log}.includes('{shards[0]} is gone')")

    browser.wait_for("document.body.dataset.level == 'good'", SUCCESSOR_S)
    log = browser.text("#log")
    assert "has come" in log
    assert "took in layer" in log
    assert not browser.run("document.getElementById('alert').checkVisibility()")
    assert browser.complaints == []
    traffic.end()
    assert set(traffic.ends) == {(200, True)}


def test_viewers_who_leave_make_room(app: Application) -> None:
    for _ in range(MAX_VIEWERS + 8):
        assert watch(app) in (200, 503)
    end_s = time.monotonic() + 20
    while watch(app) != 200:
        assert time.monotonic() < end_s, "the streams of those who left are still open"
        time.sleep(0.2)


def watch(app: Application) -> int:
    """Open the stream, and leave with its first words."""
    with httpx.stream("GET", f"{app.url}/dashboard/events", timeout=60) as answer:
        if answer.status_code == 200:
            assert next(answer.iter_raw()).startswith(b"retry: ")
        return answer.status_code

"""The live page of a scripted pool, in a browser."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.live_server import LiveServer
from tests.support.scene import Scene


@dataclass
class Shown:
    """What is on the screen, and the scene behind it."""

    scene: Scene
    server: LiveServer
    browser: Browser

    def next(self, count: int = 2) -> int:
        """Wait until the page has shown what the scene is now; how many messages that took."""
        seen = self._messages()
        self.browser.wait_for(f"document.body.dataset.messages >= {seen + count}")
        return self._messages() - seen

    def _messages(self) -> int:
        return int(self.browser.run("document.body.dataset.messages ?? 0"))

    def connection(self) -> str:
        """In a word."""
        return str(self.browser.run("document.body.dataset.connection"))

    def level(self) -> str:
        """In a word."""
        return str(self.browser.run("document.body.dataset.level"))


Show = Callable[..., Shown]


@pytest.fixture
def show(browser: Browser) -> Iterator[Show]:
    """`show(scene)` opens the page and waits for its first figures."""
    servers: list[LiveServer] = []

    def start(scene: Scene, *, keys_file: Path | None = None, width: int = 1280) -> Shown:
        servers.append(LiveServer(scene, keys_file))
        browser.look(width)
        browser.open(servers[-1].url)
        shown = Shown(scene, servers[-1], browser)
        if keys_file is None:
            shown.next()
        return shown

    yield start
    browser.open("data:text/html,closed")
    for server in servers:
        server.stop()

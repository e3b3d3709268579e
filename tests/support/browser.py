"""Headless Chromium over its DevTools protocol: what a person does and sees on a page."""

import json
import shutil
import subprocess
import time
from base64 import b64decode
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

BINARY = shutil.which("chromium")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0", "about:blank"),
)
START_S = 60.0
WAIT_S = 60.0


class Browser:
    """One page of a fresh profile."""

    def __init__(self, folder: Path) -> None:
        assert BINARY is not None
        self.complaints: list[str] = []  # errors, also of the content security policy
        self._ids = count(1)
        self._open = ExitStack()
        words = [BINARY, f"--user-data-dir={folder}", *FLAGS]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            socket = connect(self._page(folder), max_size=None, ping_interval=None, proxy=None)
            self._socket = self._open.enter_context(socket)
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])
            self._hear(message)

    def open(self, url: str) -> None:
        """Load a page, and forget what was complained of before."""
        self.complaints.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, condition: str, seconds: float = WAIT_S) -> None:
        """Until a JavaScript condition holds."""
        end_s = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            seen = self.run("document.body.innerText") or ""
            assert time.monotonic() < end_s, f"{condition} does not hold:\n{seen}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What stands there for a person to read."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def key(self, name: str, text: str = "") -> None:
        """Press and release one, `ArrowRight` or `Tab` for instance."""
        code = {"Tab": 9, "Enter": 13}.get(name, 0)
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def look(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """The window's size in CSS pixels, and the colour scheme that the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def count_work(self) -> None:
        """From now on `busy_s` tells the time for which the page's thread had a core."""
        self.call("Performance.enable", timeDomain="threadTicks")

    def busy_s(self) -> float:
        """Seconds of CPU that the page's tasks have taken: waiting for a core does not count."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    def screenshot(self, file: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(b64decode(shot["data"]))

    def close(self) -> None:
        """End it."""
        self._open.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _page(self, folder: Path) -> str:
        told, end_s = folder / "DevToolsActivePort", time.monotonic() + START_S
        while not (told.exists() and "\n" in told.read_text()):
            assert self._process.poll() is None, "Chromium ended at its start"
            assert time.monotonic() < end_s, "Chromium does not start"
            time.sleep(0.05)
        port = told.read_text().splitlines()[0]
        while True:
            url = f"http://127.0.0.1:{port}/json/list"
            for page in httpx.get(url, timeout=30, trust_env=False).json():
                if page["type"] == "page":
                    return str(page["webSocketDebuggerUrl"])
            assert time.monotonic() < end_s, "Chromium shows no page"
            time.sleep(0.05)

    def _hear(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

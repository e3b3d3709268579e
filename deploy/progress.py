"""Lines with elapsed seconds for an operator who waits.

On a terminal the line of the running step counts; elsewhere a line comes every ten seconds, so that
a log shows that something is still happening.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

TERMINAL_BEAT_S = 0.5
LOG_BEAT_S = 10.0
MAX_LIVE_COLUMNS = 100


class Progress:
    """Writes to `out`; `beats=False` leaves the clock's thread out, for tests."""

    def __init__(
        self, out: TextIO, *, clock: Callable[[], float] = time.monotonic, beats: bool = True
    ) -> None:
        self._out = out
        self._clock = clock
        self._start_s = clock()
        self._is_terminal = out.isatty()
        self._beat_s = TERMINAL_BEAT_S if self._is_terminal else LOG_BEAT_S
        self._beats = beats
        self._lock = threading.Lock()
        self._step: tuple[str, float] | None = None  # text and start of the running step

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start_s

    def say(self, text: str) -> None:
        """Print lines, the first of them with the seconds since the start."""
        with self._lock:
            self._write(text + "\n")

    def plain(self, text: str) -> None:
        """Print text as it is, to be copied."""
        with self._lock:
            self._out.write(text + "\n")
            self._out.flush()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show that `text` is being done, and how long it took or that it failed."""
        started_s = self._clock()
        self._step = (text, started_s)
        if not self._is_terminal:
            self.say(f"{text} ...")
        done = threading.Event()
        thread = threading.Thread(target=self._keep_beating, args=(done,), daemon=True)
        if self._beats:
            thread.start()
        outcome = "stopped"
        try:
            yield
            outcome = "done"
        finally:
            done.set()
            if self._beats:
                thread.join()
            self._step = None
            self.say(f"{text}: {outcome} in {self._clock() - started_s:.1f} s")

    def beat(self) -> None:
        """Show that the running step is still running."""
        with self._lock:
            if self._step is None:
                return
            text, started_s = self._step
            waited_s = self._clock() - started_s
            if self._is_terminal:
                self._write(f"{text} ... {waited_s:.0f} s"[:MAX_LIVE_COLUMNS])
            else:
                self._write(f"{text}: still at it after {waited_s:.0f} s\n")

    def _keep_beating(self, done: threading.Event) -> None:
        while not done.wait(self._beat_s):
            self.beat()

    def _write(self, text: str) -> None:
        clear = "\r\033[K" if self._is_terminal else ""
        self._out.write(f"{clear}[{self.elapsed_s:6.1f} s] {text}")
        self._out.flush()

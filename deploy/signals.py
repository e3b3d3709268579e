"""Ctrl-C and its kin: one way to be stopped.

`Stopped` is raised in the main thread by SIGINT, SIGTERM and SIGHUP alike. What is to be ended
then is in `deploy.processes`.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_WISH_S = 1.0


class Stopped(KeyboardInterrupt):
    """Somebody wants the command to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class StopSignals:
    """Raises `Stopped`, and remembers that it did.

    Signals that follow within a second are taken for the same wish: they must not interrupt the
    clean-up that the first has begun.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._raised_s = -math.inf
        self._wish: int | None = None

    def install(self) -> None:
        """Call it again after libraries that install handlers of their own (Ray does)."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._raise)
        self.check()

    def check(self) -> None:
        """Raise again: a library may have swallowed it, in a callback or while importing."""
        if self._wish is not None:
            raise Stopped(self._wish)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        now_s = self._clock()
        if now_s - self._raised_s >= SAME_WISH_S:
            self._raised_s = now_s
            self._wish = signum
            raise Stopped(signum)


def raise_on_stop_signals(clock: Callable[[], float] = time.monotonic) -> StopSignals:
    """From now on."""
    signals = StopSignals(clock)
    signals.install()
    return signals


@contextmanager
def stop_signals_ignored() -> Iterator[None]:
    """For the stopping itself, which a second Ctrl-C must not cut short."""
    # Not SIG_IGN: that would be inherited by programs started meanwhile.
    before = {signum: signal.signal(signum, _do_nothing) for signum in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    return

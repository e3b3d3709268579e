"""Obeys a stop signal also while the main thread is deep in a library's C++.

Python runs signal handlers between its own instructions only, and Ray can stay away for half a
minute. The system, however, notes each signal at once for whoever reads the wake-up pipe.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deploy.signals import STOP_SIGNALS

FORCE_WAIT_S = 5.0


@contextmanager
def obeyed_within(wait_s: float, force: Callable[[int], None]) -> Iterator[None]:
    """Call `force`, in another thread, if a stop signal has not led out of the block in time.

    For the main thread. force: gets the signal; it is to end this process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    left = threading.Event()

    def watch() -> None:
        while noted := os.read(reader, 1):
            if noted[0] in STOP_SIGNALS and not left.wait(wait_s):
                force(noted[0])

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)

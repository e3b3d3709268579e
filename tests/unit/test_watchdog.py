"""A stop signal is obeyed, also by a main thread that Python cannot interrupt."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.signals import Stopped, raise_on_stop_signals
from deploy.watchdog import obeyed_within

ROOT = Path(__file__).parents[2]
# A mutex that is locked twice is waited for in C, for ever, whatever signals come.
DEAF = """
import ctypes, os, signal
from deploy.watchdog import obeyed_within
signal.signal(signal.SIGINT, lambda *_: None)
c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with obeyed_within(0.1, lambda signum: os._exit(128 + signum)):
    c.pthread_mutex_lock(mutex)
    print("up", flush=True)
    c.pthread_mutex_lock(mutex)
"""


def test_deaf_main_thread_is_ended_by_force() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()


def test_signal_that_leads_out_in_time_needs_no_force(handlers: None) -> None:
    raise_on_stop_signals()
    forced: list[int] = []
    with pytest.raises(Stopped), obeyed_within(60.0, forced.append):
        signal.raise_signal(signal.SIGTERM)
    assert forced == []


def test_other_signals_are_nothing_to_it(handlers: None) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    forced: list[int] = []
    with obeyed_within(0.0, forced.append):
        signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert forced == []


def test_wake_up_pipe_of_others_is_put_back() -> None:
    with obeyed_within(60.0, lambda signum: None):
        pass
    assert signal.set_wakeup_fd(-1) == -1

"""Each function of the C library as compiled loops call it, and the address of what they pass."""

import os
import select
import time

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from router.errors import EngineError
from router.jit import jit
from services.transport import libc


@jit
def written(file: int, parts: NDArray[np.int64], one: NDArray[np.uint8]) -> int:
    parts[0], parts[1] = libc.address(one), one.size
    parts[2], parts[3] = libc.address(one[1:]), one.size - 1
    return libc.writev(np.int32(file), libc.address(parts), np.int32(2))


@jit
def ready(polled: NDArray[np.int32], timeout_ms: int) -> int:
    return libc.poll(libc.address(polled), polled.shape[0], np.int32(timeout_ms))


@jit
def got(file: int, room: NDArray[np.uint8]) -> int:
    return libc.read(np.int32(file), libc.address(room), room.size)


@jit
def copy(to: NDArray[np.uint8], of: NDArray[np.uint8]) -> None:
    libc.memcpy(libc.address(to), libc.address(of), of.size)
    libc.memmove(libc.address(to[1:]), libc.address(to), of.size)


def test_what_is_written_can_be_polled_and_read() -> None:
    back, forth = os.pipe()
    polled = np.array([[back, select.POLLIN]], np.int32)
    assert ready(polled, 0) == 0
    assert written(forth, np.zeros(4, np.int64), np.arange(3, dtype=np.uint8)) == 5
    assert ready(polled, 1000) == 1
    assert polled[0, 1] >> 16 == select.POLLIN
    room = np.zeros(8, np.uint8)
    assert got(back, room) == 5
    assert room.tolist() == [0, 1, 2, 1, 2, 0, 0, 0]
    os.close(forth)
    assert got(back, room) == 0
    os.close(back)
    assert got(back, room) == -1


def test_memory_is_copied_and_moved() -> None:
    to, of = np.zeros(4, np.uint8), np.array([1, 2, 3], np.uint8)
    copy(to, of)
    assert to.tolist() == [1, 1, 2, 3]


@jit
def gathered(to: NDArray[np.uint8], of: NDArray[np.uint8], rows: NDArray[np.int32]) -> None:
    libc.gather(libc.address(to), libc.address(of), rows, of.shape[1])


def test_rows_are_gathered_in_the_order_asked_for() -> None:
    to, of = np.zeros((3, 2), np.uint8), np.arange(8, dtype=np.uint8).reshape(4, 2)
    rows = np.array([3, 0, 3], np.int32)
    gathered(to, of, rows)
    assert to.tolist() == of[rows].tolist()


def test_the_clock_is_that_of_monotonic() -> None:
    before_s = time.monotonic()
    now_s = libc.clock_ns(np.zeros(2, np.int64)) / libc.NS
    assert before_s - 1e-6 <= now_s <= time.monotonic() + 1e-6


def test_another_numba_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numba.__version__ == libc.NUMBA_VERSION
    monkeypatch.delattr(numba.types, "ExternalFunction")
    with pytest.raises(EngineError, match=rf"numba {libc.NUMBA_VERSION} has no"):
        libc._of_libc("poll", None)

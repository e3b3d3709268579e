"""Functions of the C library for compiled loops, with addresses as integers.

numba knows functions of the process by name through `ExternalFunction`, which its documentation
does not have; functions of ctypes and cffi, which it has, cannot be cached on disk. Nothing else
touches it, and `tests/unit/test_libc.py` calls each of them.
"""

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from router.errors import EngineError
from router.jit import jit

NUMBA_VERSION: Final = "0.65.0"
NS: Final = 1_000_000_000  # a second


def _of_libc(name: str, signature: Any) -> Any:
    kind = getattr(types, "ExternalFunction", None)
    if kind is None:
        raise EngineError(
            f"numba {numba.__version__} has no types.ExternalFunction; ExpertMesh was written for "
            f"numba {NUMBA_VERSION}. Install that."
        )
    return kind(name, signature)


poll: Callable[[int, int, Any], int] = _of_libc(
    "poll", types.int32(types.intp, types.intp, types.int32)
)
read: Callable[[Any, int, int], int] = _of_libc(
    "read", types.intp(types.int32, types.intp, types.intp)
)
writev: Callable[[Any, int, Any], int] = _of_libc(
    "writev", types.intp(types.int32, types.intp, types.int32)
)
memcpy: Callable[[int, int, int], int] = _of_libc(
    "memcpy", types.intp(types.intp, types.intp, types.intp)
)
memmove: Callable[[int, int, int], int] = _of_libc(
    "memmove", types.intp(types.intp, types.intp, types.intp)
)
clock_gettime: Callable[[Any, int], int] = _of_libc(
    "clock_gettime", types.int32(types.int32, types.intp)
)


@jit
def address(array: NDArray[Any]) -> int:
    """Of the first number of an array that the compiled loop was given.

    Not of one that it has made: numba frees that after its last use, and this is none.
    """
    return np.int64(array.ctypes.data)  # type: ignore[return-value]  # as addresses can be added to


@jit
def clock_ns(room: NDArray[np.int64]) -> int:
    """Nanoseconds of `time.monotonic`'s and `time.perf_counter`'s clock. room: [2] at least."""
    clock_gettime(np.int32(1), address(room))
    return int(room[0] * NS + room[1])


@jit
def gather(to: int, rows_at: int, rows: NDArray[np.int32], row_bytes: int) -> None:
    """Copy these rows of what is at `rows_at`, one behind the other."""
    for row in rows:
        memcpy(to, rows_at + row * row_bytes, row_bytes)
        to += row_bytes

"""A process's OpenMP threads, that leave their cores to others while it waits for them.

Attention and experts of one host take turns on the same cores. A step has hundreds of small
parallel loops, so threads must spin between them; threads that spin while others compute take the
cores away. OpenMP knows one or the other for a whole process. So here a parallel region is opened
in which all threads but the caller's sleep on a semaphore, by the two calls that GCC's compilers
make for every such region (libgomp's ABI since version 1.0), in the library that torch brings.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SEMAPHORE_BYTES = 64  # more than any libc's sem_t
PAUSE_SOFT = 1  # of OpenMP 5: threads end, settings stay


@cache
def openmp() -> ctypes.PyDLL | None:
    """torch's libgomp; None if this torch was built with something else."""
    for file in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        library = ctypes.PyDLL(str(file))
        if hasattr(library, "GOMP_parallel_start") and hasattr(library, "omp_pause_resource_all"):
            library.GOMP_parallel_start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
            return library
    log.info("torch brings no libgomp: threads are not put to sleep while others compute")
    return None


def a_core_each(threads: int, *, from_last: bool = False) -> tuple[int, ...]:
    """The cores of `threads` threads if they are as many as this process may use, else none."""
    cores = sorted(os.sched_getaffinity(0), reverse=from_last)
    return tuple(cores) if threads == len(cores) > 1 else ()


class ThreadTeam(threading.local):
    """The OpenMP threads of whichever thread asks; each has its own, and begins with one."""

    def __init__(self, cores: Sequence[int] = ()) -> None:
        """cores: the caller's own and one for each further thread; empty: as the kernel likes."""
        self._cores = tuple(cores)
        self._size = 1
        self._library = openmp()
        self._libc = ctypes.PyDLL(None)
        self._semaphore = ctypes.create_string_buffer(SEMAPHORE_BYTES)
        self._sleep = ctypes.cast(self._libc.sem_wait, ctypes.c_void_p)
        self._is_open = False  # the region in which they sleep
        self._asleep = 0  # threads that nobody has woken yet

    def use(self, threads: int) -> None:
        """Compute with so many threads from now on."""
        if threads > self._size and self._cores and self._library is not None:
            self._start_on_cores(threads, self._library)
        if threads != self._size or threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self._size = threads

    def _start_on_cores(self, threads: int, library: ctypes.PyDLL) -> None:
        """A new thread may run where the one may that starts it, so they are started in turn."""
        library.omp_pause_resource_all(PAUSE_SOFT)
        try:
            for size in range(2, threads + 1):
                os.sched_setaffinity(0, {self._cores[size - 1]})
                self._open(size, library)
                self.back()
        finally:
            os.sched_setaffinity(0, {self._cores[0]})

    def sleep(self) -> None:
        """Let all but the calling thread sleep; until they are `back` it computes alone."""
        if self._size > 1 and self._library is not None and not self._is_open:
            self._open(self._size, self._library)

    def _open(self, threads: int, library: ctypes.PyDLL) -> None:
        self._libc.sem_init(self._semaphore, 0, 0)
        library.GOMP_parallel_start(self._sleep, self._semaphore, threads)
        self._is_open, self._asleep = True, library.omp_get_num_threads() - 1
        library.omp_set_num_threads(1)  # in the region alone; kernels ask for it in advance

    def wake(self) -> None:
        """Let them begin to come back, which takes some 50 µs."""
        for _ in range(self._asleep):
            self._libc.sem_post(self._semaphore)
        self._asleep = 0

    def back(self) -> None:
        """Have them back; nothing happens if they do not sleep."""
        if self._is_open and self._library is not None:
            self.wake()
            self._library.GOMP_parallel_end()
            self._is_open = False

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Within, they sleep."""
        self.sleep()
        try:
            yield
        finally:
            self.back()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within, they compute; afterwards they sleep."""
        self.back()
        try:
            yield
        finally:
            self.sleep()

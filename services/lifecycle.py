"""What a process owes its host: to end with its parent, and to leave memory and cores to others."""

import contextlib
import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES = 256 << 20
COMPUTING_NICENESS = 5  # a third of the weight of those at 0, where both want the same core


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere nothing happens."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        return


def let_others_first() -> None:
    """For the thread that computes on a CPU, and what it starts; Linux has a niceness for each.

    Computing takes every core that there is. Whoever passes tokens on, or says no, needs little,
    and at once: without a turn it keeps a queue that nobody sees.
    """
    os.nice(COMPUTING_NICENESS)


def give_back_memory() -> None:
    """Return freed heap to the system; glibc keeps blocks of up to 32 MiB for itself otherwise."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return


def keep_memory() -> None:
    """Keep freed blocks of up to 256 MiB for the next ones, where the C library is glibc.

    Else a layer's larger intermediate results are new pages each time, which Linux clears and maps
    one by one: with 512 rows that takes three times as long as what is computed.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)

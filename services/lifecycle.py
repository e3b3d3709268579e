"""What a process owes its host: to end with its parent, and to give back memory."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere nothing happens."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        return


def give_back_memory() -> None:
    """Return freed heap to the system; glibc keeps blocks of up to 32 MiB for itself otherwise."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return

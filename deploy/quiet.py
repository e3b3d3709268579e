"""Keeps what libraries print out of what the operator reads.

Ray writes to standard output and error from Python and from C++, also when all is well. While
`up` runs, the process's two streams lead into a file; `own_stream` keeps a way to the terminal.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def own_stream(stream: TextIO) -> TextIO:
    """The same place under another file descriptor, which no library knows."""
    stream.flush()
    return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")


@contextmanager
def output_into(file: Path) -> Iterator[None]:
    """Lead standard output and error, and those of programs started meanwhile, into `file`."""
    kept = os.dup(1), os.dup(2)
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    _point_to(target, target)
    os.close(target)
    try:
        yield
    finally:
        _point_to(*kept)
        for descriptor in kept:
            os.close(descriptor)


def _point_to(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)

"""The pool of `tests.support.doomed_pool` in a process of its own.

Apart from it because this half must not import the router: numba has to stay out of a process
in which vLLM's worker is about to start (services/attention/loader.py says why).
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from services.lifecycle import end_with_parent

POOL_TIMEOUT_S = 200.0  # for any answer; the longest is the start of all shards


def _serve(pipe: Connection, model: Path, run_dir: Path) -> None:
    from tests.support.doomed_pool import DoomedPool

    end_with_parent()
    pool = DoomedPool(model, run_dir)
    try:
        while True:
            ready = wait([pipe, *pool.pipes()])
            pool.watch()
            if pipe in ready:
                method, arguments = pipe.recv()
                pipe.send(getattr(pool, method)(*arguments))
    except EOFError:
        return
    finally:
        pool.close()


class PoolEnd:
    """The engine's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method of `DoomedPool` run there; `answer` gives what it returns."""
        self._pipe.send((method, arguments))

    def answer(self) -> Any:
        """What the method that was asked for returns. Raises TimeoutError, or EOFError if dead."""
        if not self._pipe.poll(POOL_TIMEOUT_S):
            raise TimeoutError(f"the pool did not answer within {POOL_TIMEOUT_S:.0f} s")
        return self._pipe.recv()

    def call(self, method: str, *arguments: Any) -> Any:
        """Ask and wait for the answer."""
        self.ask(method, *arguments)
        return self.answer()


@contextmanager
def pool_process(model: Path, run_dir: Path) -> Iterator[PoolEnd]:
    """A pool that ends with the block; its sockets lie in `run_dir`."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, model, run_dir))
    process.start()
    theirs.close()
    try:
        yield PoolEnd(pipe)
    finally:
        pipe.close()
        process.join(20)
        process.kill()

"""The pool of `tests.support.pool` in a process of its own.

Apart from it because this half must not import the router: numba has to stay out of a process
in which vLLM's worker is about to start (services/attention/loader.py says why).
"""

import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def _serve(pipe: Connection, model: Path, dtype: str, run_dir: Path) -> None:
    from tests.support.pool import ShardThreads, layouts

    shards = ShardThreads(model, dtype, run_dir)
    shards.hold()
    pipe.send([layout.name for layout in layouts(1, 1)])
    while True:
        method, arguments = pipe.recv()
        pipe.send(getattr(shards, method)(*arguments))
        if method == "close":
            return


class PoolProcess:
    """Runs `ShardThreads` in a process of its own; use as a context manager."""

    def __init__(self, model: Path, dtype: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="exm-")
        self._pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, model, dtype, Path(self._folder.name)), daemon=True
        )
        self._process.start()

    def __enter__(self) -> "PoolProcess":
        return self

    def layouts(self) -> list[str]:
        """Names of the layouts, when all shards hold what they should."""
        if not self._pipe.poll(120):
            raise TimeoutError("the pool process did not come up within 120 s")
        return list(self._pipe.recv())

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method of `ShardThreads` there."""
        self._pipe.send((method, arguments))
        return self._pipe.recv()

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self.call("close")
        self._process.join(10)
        self._process.kill()
        self._folder.cleanup()

"""Two halves of a step in turn: while one's rows are with the shards, the other computes.

Each half has a thread, because a model's forward pass cannot be left in its middle otherwise, and
one of the two runs at a time. Source: the two micro-batches of DeepSeek-V3's prefill (arXiv
2412.19437, section 3.4.1), here over processes and not over streams of one GPU.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import Any

FIRST, SECOND = 0, 1
LEAST_SHARE = 0.25  # of a step's tokens; what a smaller half would gain is not worth its calls
Half = Callable[[], Any]
Keeping = Callable[[], AbstractContextManager[None]]


class OtherHalfFailed(Exception):
    """Raised in a half to end it, because the other one has raised."""


class Turns:
    """First halves run in the thread that calls `run`, second ones in a thread of this object's."""

    def __init__(self) -> None:
        self._step: _Step | None = None
        self._steps: SimpleQueue[_Step] = SimpleQueue()
        self._second: threading.Thread | None = None

    def run(self, first: Half, second: Half, *, keeping: Keeping = nullcontext) -> tuple[Any, Any]:
        """What the two return. Raises what the one raises that fails first; the other ends then.

        keeping: open while it is the other half's turn, for what both would change.
        """
        if self._second is None:
            self._second = threading.Thread(target=self._run_seconds, name="half", daemon=True)
            self._second.start()
        self._step = step = _Step((first, second), keeping)
        self._steps.put(step)
        with keeping():
            step.run(FIRST)
            step.wait_for(SECOND)
        self._step = None
        if step.error is not None:
            raise step.error
        return step.results[FIRST], step.results[SECOND]

    def _run_seconds(self) -> None:
        while True:
            self._steps.get().run(SECOND)

    @property
    def is_split(self) -> bool:
        """Whether a step in two halves runs."""
        return self._step is not None

    @property
    def _half(self) -> int:
        return SECOND if threading.current_thread() is self._second else FIRST

    @property
    def begins(self) -> bool:
        """Whether the half that asks is in front: in its first layer the step begins."""
        return self._half == FIRST

    @property
    def ends(self) -> bool:
        """Whether the half that asks is behind, or alone: after its last layer the step is over."""
        return self._step is None or self._half == SECOND

    def pass_on(self) -> float:
        """Let the other half run until it does the same or ends; returns the seconds that took.

        Nothing happens in a step that is whole, or if the other half has ended. Raises
        OtherHalfFailed.
        """
        return 0.0 if self._step is None else self._step.pass_on(self._half)


class _Step:
    """One step's two halves."""

    def __init__(self, halves: tuple[Half, Half], keeping: Keeping) -> None:
        self._halves = halves
        self._keeping = keeping
        self._turns = (threading.Semaphore(1), threading.Semaphore(0))
        self._is_over = [False, False]
        self.results: list[Any] = [None, None]
        self.error: BaseException | None = None

    def run(self, half: int) -> None:
        self._turns[half].acquire()
        try:
            if self.error is None:
                self.results[half] = self._halves[half]()
        except OtherHalfFailed:
            pass
        except BaseException as error:  # raised by `Turns.run`, in the thread that called it
            self.error = error
        finally:
            self._is_over[half] = True
            self._turns[1 - half].release()

    def wait_for(self, half: int) -> None:
        """Called by the one that has ended."""
        if not self._is_over[half]:
            self._turns[1 - half].acquire()

    def pass_on(self, half: int) -> float:
        if self._is_over[1 - half]:
            self._check()
            return 0.0
        began_s = time.perf_counter()
        with self._keeping():
            self._turns[1 - half].release()
            self._turns[half].acquire()
        self._check()
        return time.perf_counter() - began_s

    def _check(self) -> None:
        if self.error is not None:
            raise OtherHalfFailed


def cut_at(starts: Sequence[int]) -> int | None:
    """The request with which the second half begins; None if no cut is worth it.

    starts: where each request begins among the step's tokens, and their number.
    """
    count = starts[-1]
    best = min(range(1, len(starts) - 1), key=lambda r: abs(2 * starts[r] - count), default=None)
    if best is None or min(starts[best], count - starts[best]) < LEAST_SHARE * count:
        return None
    return best

"""Lets so many requests at a time through to the engines; the rest wait, few and not for long.

Whoever has the fewest requests running goes first, so one key cannot keep the others waiting. Only
those wait who will have their turn in time, by what has left lately (`pace`): under overload the
queue is as short as that, and the others are told so at once, which costs nothing.

While some are sent away the others enter one by one, somewhat faster than they leave. Else those
who end together, as equal requests do, make room together: as many new prompts in one step, for
which everybody waits, who then end together, and so on for ever.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from services.gateway.errors import Refusal
from services.gateway.pace import Pace

RETRY_AFTER_S = 1.0
ENTRY_RATIO = 1.25  # how much faster they may enter than they leave

Turn = asyncio.Future[None]


class Admission:
    """One gateway's door."""

    def __init__(
        self,
        *,
        max_running: int,
        max_waiting: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_running = max_running  # may change at any time
        self.is_closing = False
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._pace = Pace()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Turn]] = {}
        self._refused_s = -math.inf  # when the last one was
        self._next_s = -math.inf  # before which nobody may enter
        self._timer: asyncio.TimerHandle | None = None  # for when that is over

    @property
    def running(self) -> int:
        """Requests that were let through."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(queue) for queue in self._waiting.values())

    @asynccontextmanager
    async def enter(self, name: str) -> AsyncIterator[None]:
        """Wait to be let through. name: the key's. Raises Refusal: 503."""
        self.check(name)
        if self._has_room and not self._waiting:
            self._let_through(name)
        else:
            await self._wait(name)
        entered_s = self._clock()
        try:
            yield
        finally:
            self._pace.took(self._clock() - entered_s)
            self._leave(name)

    def check(self, name: str) -> None:
        """Raises Refusal, 503, if `enter` would at once; for those whose body is still to come."""
        if self.is_closing:
            raise Refusal(503, "this gateway is stopping. Send the request again.", retry_after_s=1)
        if self._has_room and not self._waiting:
            return
        if (problem := self._why_not_wait()) and self._to_push_out(name) is None:
            full_s = min(self._next_wait_s(), self._max_wait_s) / 2  # while those who wait go in
            raise self._refusal(problem, full_s=full_s)

    def let_in(self) -> None:
        """Let those through for whom there is room."""
        while self._waiting and self._has_room:
            # The one with the fewest running; among equals the one that was served longest ago.
            name = min(self._waiting, key=lambda one: self._running[one])
            queue = self._waiting.pop(name)
            turn = queue.popleft()
            if queue:
                self._waiting[name] = queue  # to the end of the dictionary
            if not turn.done():
                self._let_through(name)
                turn.set_result(None)
        if self._waiting and self.running < self.max_running and self._timer is None:
            delay_s = self._next_s - self._clock()
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.let_in()

    @property
    def _has_room(self) -> bool:
        return self.running < self.max_running and self._clock() >= self._next_s

    def _let_through(self, name: str) -> None:
        self._running[name] += 1
        now_s = self._clock()
        if now_s - self._refused_s < self._pace.mean_s:  # for as long as a request takes
            self._next_s = now_s + self._gap_s()

    def _gap_s(self) -> float:
        return self._pace.wait_s(0, self.max_running) / ENTRY_RATIO

    def _refusal(self, problem: str, *, full_s: float = 0.0) -> Refusal:
        self._refused_s = self._clock()
        return Refusal(503, problem, retry_after_s=RETRY_AFTER_S, full_s=full_s)

    async def _wait(self, name: str) -> None:
        if problem := self._why_not_wait():
            self._push_out(name, problem)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(turn)
        self.let_in()
        try:
            async with asyncio.timeout(self._max_wait_s):  # wait_for can swallow a cancellation
                await turn
        except TimeoutError:
            if _was_let_in(turn):  # at the last moment
                return
            raise self._refusal(
                f"no engine was free for {self._max_wait_s:g} s (limits.max_queue_wait_s). "
                "Try again later."
            ) from None
        except asyncio.CancelledError:
            if _was_let_in(turn):  # and gone in the same moment
                self._leave(name)
            raise
        finally:
            self._forget(name, turn)

    def _why_not_wait(self) -> str:
        """Why one more may not wait; empty if it may."""
        if self.waiting >= self._max_waiting:
            return (
                f"{self.running} requests are being answered and {self.waiting} wait; the limit of "
                f"the latter is {self._max_waiting} (limits.max_queued_requests). Try again later."
            )
        wait_s = self._next_wait_s()
        if wait_s > self._max_wait_s:
            return (
                f"{self.running} requests are being answered and {self.waiting} wait; the next one "
                f"would for {wait_s:.1f} s, and the limit is {self._max_wait_s:g} "
                "(limits.max_queue_wait_s). Try again later."
            )
        return ""

    def _next_wait_s(self) -> float:
        """How long one more would wait."""
        if self.running < self.max_running:
            return max(0.0, self._next_s - self._clock()) + self.waiting * self._gap_s()
        return self._pace.wait_s(self.waiting, self.max_running)

    def _to_push_out(self, name: str) -> str | None:
        """The key that has most here, if it would still have no less when `name` has one more."""
        heaviest = max(self._waiting, key=self._weight, default=name)
        return heaviest if self._weight(heaviest) > self._weight(name) + 1 else None

    def _push_out(self, name: str, problem: str) -> None:
        """Send the last one of that key away."""
        heaviest = self._to_push_out(name)
        assert heaviest is not None, "`check` has refused that"
        turn = self._waiting[heaviest][-1]
        self._forget(heaviest, turn)
        if not turn.done():
            turn.set_exception(self._refusal(problem))

    def _weight(self, name: str) -> int:
        return self._running[name] + len(self._waiting.get(name, ()))

    def _leave(self, name: str) -> None:
        self._running[name] -= 1
        if not self._running[name]:
            del self._running[name]
        self.let_in()

    def _forget(self, name: str, turn: Turn) -> None:
        queue = self._waiting.get(name)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[name]


def _was_let_in(turn: Turn) -> bool:
    return turn.done() and not turn.cancelled() and turn.exception() is None

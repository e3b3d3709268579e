"""Lets so many requests at a time through to the engines; the rest wait, few and not for long.

Whoever has the fewest requests running goes first, so one key cannot keep the others waiting. A
request that would wait too long is told so at once, which costs nothing and keeps queues short.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.gateway.errors import Refusal

RETRY_AFTER_S = 1.0


class Admission:
    """One gateway's door."""

    def __init__(self, *, max_running: int, max_waiting: int, max_wait_s: float) -> None:
        self.max_running = max_running  # may change at any time
        self.is_closing = False
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

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
        if self.is_closing:
            raise Refusal(503, "this gateway is stopping. Send the request again.", retry_after_s=1)
        if self.running < self.max_running and not self._waiting:
            self._running[name] += 1
        else:
            await self._wait(name)
        try:
            yield
        finally:
            self._running[name] -= 1
            if not self._running[name]:
                del self._running[name]
            self.let_in()

    def let_in(self) -> None:
        """Let those through for whom there is room."""
        while self._waiting and self.running < self.max_running:
            # The one with the fewest running; among equals the one that was served longest ago.
            name = min(self._waiting, key=lambda one: self._running[one])
            queue = self._waiting.pop(name)
            turn = queue.popleft()
            if queue:
                self._waiting[name] = queue  # to the end of the dictionary
            if not turn.done():
                self._running[name] += 1
                turn.set_result(None)

    async def _wait(self, name: str) -> None:
        if self.waiting >= self._max_waiting:
            raise Refusal(
                503,
                f"{self.running} requests are being answered and {self.waiting} wait; the limit of "
                f"the latter is {self._max_waiting} (limits.max_queued_requests). Try again later.",
                retry_after_s=RETRY_AFTER_S,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(turn)
        try:
            async with asyncio.timeout(self._max_wait_s):  # wait_for can swallow a cancellation
                await turn
        except TimeoutError:
            if not turn.cancelled():  # let in at the last moment
                return
            raise Refusal(
                503,
                f"no engine was free for {self._max_wait_s:g} s (limits.max_queue_wait_s). "
                "Try again later.",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in, and gone in the same moment
                self._running[name] -= 1
                self.let_in()
            raise
        finally:
            self._forget(name, turn)

    def _forget(self, name: str, turn: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(name)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[name]

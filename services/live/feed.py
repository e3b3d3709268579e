"""One look a second at the controller, for all who watch a gateway; none when nobody does."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from monitoring.snapshot import Snapshot
from services.gateway.errors import Refusal
from services.live.message import Look, holdings_message, state_message
from services.live.rates import Mark
from services.messages import ControllerStatus

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
MAX_VIEWERS = 32  # of one gateway
MAX_STREAM_S = 600.0  # then the page asks again, and its key is looked at again
RATE_S = 5.0  # over which rates are taken; processes report every half second
QUANTILE_S = 60.0
ANSWER_S = 5.0


class LiveSource(Protocol):
    """What `services.cluster.ControllerClient` can do."""

    async def status(self) -> ControllerStatus:
        """What the controller knows."""

    async def metrics(self, timeout_s: float) -> Snapshot:
        """All figures."""


@dataclass(frozen=True, slots=True)
class _News:
    """number: from 1. holdings: and the number of the news that it has been the same since."""

    number: int
    state: bytes
    holdings: bytes
    holdings_since: int


class LiveFeed:
    """Of one gateway. A viewer who reads slowly misses looks; nothing is queued for anybody."""

    def __init__(
        self,
        source: LiveSource,
        is_closing: Callable[[], bool] = lambda: False,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """is_closing: whether the gateway is to stop, which ends all streams."""
        self._source = source
        self._is_closing = is_closing
        self._interval_s = interval_s
        self._marks: deque[Mark] = deque()
        self._news: _News | None = None
        self._changed = asyncio.Condition()
        self._polling: asyncio.Task[None] | None = None
        self.viewers = 0

    def check(self) -> None:
        """Raises Refusal, 503, if there is no room for another viewer."""
        if self.viewers >= MAX_VIEWERS:
            raise Refusal(
                503,
                f"{self.viewers} viewers watch this gateway, which is the limit. Close another "
                "page, or ask GET /metrics.",
                retry_after_s=10,
            )

    async def watch(self) -> AsyncIterator[bytes]:
        """Server-sent events until the viewer leaves, the gateway stops, or time is up."""
        self.viewers += 1
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name="live")
        end_s = time.monotonic() + MAX_STREAM_S
        seen = held = 0
        try:
            yield b"retry: 1000\n\n"
            while time.monotonic() < end_s and not self._is_closing():
                news = await self._newer_than(seen)
                if news.holdings and news.holdings_since > held:
                    yield news.holdings
                yield news.state
                seen = held = news.number
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._stop()

    def _stop(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        self._polling, self._news = None, None
        self._marks.clear()

    async def _newer_than(self, seen: int) -> _News:
        async with self._changed:
            while self._news is None or self._news.number <= seen:
                await self._changed.wait()
            return self._news

    async def _poll(self) -> None:
        while True:
            started_s = time.monotonic()
            try:
                await self._look()
            except Exception as error:  # Serve raises many kinds while the controller is away
                log.warning("live page: the controller does not answer: %r", error)
                await self._tell(_event(b"away", b"{}"), None)
            await asyncio.sleep(max(0.0, self._interval_s - (time.monotonic() - started_s)))

    async def _look(self) -> None:
        async with asyncio.timeout(ANSWER_S):
            status, snapshot = await asyncio.gather(
                self._source.status(), self._source.metrics(ANSWER_S)
            )
        look = Look(time.monotonic(), status, snapshot)
        state, holdings = await asyncio.to_thread(self._messages, look)
        self._marks.append(look.mark.for_later())
        while self._marks[0].at_s < look.at_s - QUANTILE_S - self._interval_s:
            self._marks.popleft()
        await self._tell(_event(b"state", state), _event(b"holdings", holdings))

    def _messages(self, now: Look) -> tuple[bytes, bytes]:
        before, long_before = (self._since(now.at_s - s) for s in (RATE_S, QUANTILE_S))
        return state_message(now, before, long_before), holdings_message(now)

    def _since(self, at_s: float) -> Mark | None:
        """The oldest mark that is not older."""
        return next((mark for mark in self._marks if mark.at_s >= at_s), None)

    async def _tell(self, state: bytes, holdings: bytes | None) -> None:
        was = self._news
        number = 1 if was is None else was.number + 1
        since = number
        if was is not None and holdings in (None, was.holdings):
            holdings, since = was.holdings, was.holdings_since
        self._news = _News(number, state, holdings or b"", since)
        async with self._changed:
            self._changed.notify_all()


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"

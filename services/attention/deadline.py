"""Requests do not wait for lost experts longer than the deadline, though the engine does.

A step that misses an expert stops the whole engine until the expert is loaded again. The engine
keeps its state, so that it can go on; the clients are told.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from services.attention.feed import Stranded

POLL_S = 0.25


async def until_lost(
    stream: AsyncGenerator[Any, None], stranded: Callable[[], Stranded | None], deadline_s: float
) -> AsyncGenerator[Any, None]:
    """What `stream` yields; if experts stay lost for `deadline_s`, what to tell, and the end.

    The stream is closed then, by which the engine drops the request.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Task[Any] | None = None  # for the next item
    given_up: Stranded | None = None
    timer: asyncio.TimerHandle

    def overdue() -> Stranded | None:
        lost = stranded()
        return lost if lost and time.monotonic() - lost.since_s > deadline_s else None

    def look() -> None:
        nonlocal given_up, timer
        if waiting and (given_up := overdue()):
            waiting.cancel()
        else:
            timer = loop.call_later(POLL_S, look)

    if lost := overdue():
        await stream.aclose()
        yield lost_error(lost, deadline_s)
        return
    timer = loop.call_later(POLL_S, look)
    try:
        while True:
            waiting = asyncio.current_task()
            try:
                item = await anext(stream)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if given_up is None or waiting is None:
                    raise
                waiting.uncancel()
                yield lost_error(given_up, deadline_s)
                return
            waiting = None
            yield item
    finally:
        timer.cancel()


def lost_error(lost: Stranded, deadline_s: float) -> str:
    """What the client is told, with 503."""
    waited_s = time.monotonic() - lost.since_s
    return (
        f"{lost.what}; the request waited up to {waited_s:.0f} s while they were being loaded "
        f"again, the limit is router.lost_expert_deadline_s={deadline_s:g}. Send it again later."
    )

"""Traffic that changes its mind: other experts become hot, and the placement has to follow.

Every client has its output forced to one token, so that the real gate sends nearly all rows of a
layer to that token's few experts; then to another token. A witness decodes freely meanwhile.
"""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bench.application import POLL_S, RunningApplication
from deploy.bench.load import Stream, closed_loop, percentile
from router.errors import PlatformError

FORCED = 100.0  # logit bias; vLLM's limit
WITHIN_RATIO = 1.10


@dataclass(frozen=True, slots=True)
class Shift:
    """From one token to another."""

    before: str
    after: str
    settle_s: float  # traffic of the first kind
    follow_s: float  # then of the second
    clients: int
    max_tokens: int  # of a request


@dataclass(frozen=True, slots=True)
class Look:
    """What the controller said at one moment."""

    at_s: float  # monotonic clock
    imbalance: float
    moves_left: int


@dataclass(frozen=True, slots=True)
class Shifted:
    """What was seen."""

    streams: tuple[Stream, ...]  # of both kinds
    witness: tuple[Stream, ...]
    p99_ratio: float  # time between chunks while experts moved, over that while none did
    imbalance_before: float  # the worst after the shift
    imbalance_after: float
    imbalance_optimum: float  # of the placement that is asked for in the end
    within_s: float  # from the shift until within 10 % of the optimum for good


async def shift_load(app: RunningApplication, shift: Shift, prompts: Sequence[str]) -> Shifted:
    """Run both kinds of traffic, one after the other, and watch. prompts: of the witness."""
    looks: list[Look] = []
    stop = asyncio.Event()
    watching = asyncio.create_task(_watch(app, looks, stop))
    witness = asyncio.create_task(
        closed_loop(
            app.url,
            model=app.model,
            prompts=prompts,
            clients=1,
            max_tokens=shift.max_tokens,
            stop=stop,
        )
    )
    try:
        first = await _traffic(app, shift, shift.before, shift.settle_s)
        shifted_s = time.monotonic()
        second = await _traffic(app, shift, shift.after, shift.follow_s)
    finally:
        stop.set()
        await watching
    decision = await asyncio.to_thread(app.rebalance)
    optimum = min(decision.imbalance_before, decision.imbalance_after)
    after = [look for look in looks if look.at_s > shifted_s]
    return Shifted(
        streams=(*first, *second),
        witness=tuple(await witness),
        p99_ratio=p99_while_moving(first + second, looks),
        imbalance_before=max((look.imbalance for look in after), default=1.0),
        imbalance_after=decision.imbalance_before,
        imbalance_optimum=optimum,
        within_s=seconds_until_within(after, shifted_s, WITHIN_RATIO * optimum),
    )


async def _traffic(
    app: RunningApplication, shift: Shift, token: str, seconds: float
) -> list[Stream]:
    return await closed_loop(
        app.url,
        model=app.model,
        prompts=[f"{i}. Once upon a time" for i in range(shift.clients)],
        clients=shift.clients,
        max_tokens=shift.max_tokens,
        seconds=seconds,
        logit_bias={token: FORCED},
    )


async def _watch(app: RunningApplication, looks: list[Look], stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            status = await asyncio.to_thread(app.status)
        except PlatformError:
            continue
        if status.imbalance is not None:
            looks.append(Look(time.monotonic(), status.imbalance, status.moves_left))
        await asyncio.sleep(POLL_S)


def p99_while_moving(streams: Sequence[Stream], looks: Sequence[Look]) -> float:
    """p99 of the gaps that end while experts move, over p99 of the others; nan if there is none."""
    moving: list[float] = []
    still: list[float] = []
    at_s = [look.at_s for look in looks]
    for stream in streams:
        for end_s, gap_s in zip(stream.arrivals_s[1:], stream.gaps_s, strict=True):
            first, last = bisect_left(at_s, end_s - gap_s), bisect_right(at_s, end_s)
            seen = looks[max(first - 1, 0) : last + 1]
            (moving if any(look.moves_left for look in seen) else still).append(gap_s)
    return percentile(moving, 99) / percentile(still, 99)


def seconds_until_within(looks: Sequence[Look], since_s: float, limit: float) -> float:
    """From `since_s` until the imbalance stays at or below `limit`; inf if it does not."""
    last_above_s = max((look.at_s for look in looks if look.imbalance > limit), default=since_s)
    if looks and looks[-1].imbalance > limit:
        return float("inf")
    return last_above_s - since_s

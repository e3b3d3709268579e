"""How much a key may use: token buckets and a count of open requests. Pure; the clock is given.

A minute's worth may be used at once, then as much as a minute brings. Generated tokens are known
only afterwards, so a bucket may go below zero by one request's tokens, and is then paid off first.
What other gateways let through is taken off as soon as it is told (`Limiter.learn`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.gateway.errors import Refusal
from services.gateway.keys import Key
from services.messages import Use


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """Per key; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None

    def of(self, key: Key) -> "KeyLimits":
        """What holds for a key: its own limits, and these where it has none."""
        return KeyLimits(
            key.requests_per_minute or self.requests_per_minute,
            key.tokens_per_minute or self.tokens_per_minute,
            key.streams or self.streams,
        )


@dataclass(slots=True)
class Bucket:
    """Refills at `per_minute`, holds at most that."""

    per_minute: int
    left: float
    at_s: float

    def refill(self, now_s: float) -> None:
        """Let time pass."""
        rate = self.per_minute / 60
        self.left = min(self.per_minute, self.left + rate * (now_s - self.at_s))
        self.at_s = now_s

    def wait_s(self, least: float) -> float:
        """Seconds until `least` is in it."""
        return max(0.0, (least - self.left) * 60 / self.per_minute)


@dataclass(slots=True)
class _State:
    mine: Use = field(default_factory=Use)
    others: Use | None = None  # as last told
    buckets: dict[str, Bucket] = field(default_factory=dict)


class Limiter:
    """All keys at one gateway."""

    def __init__(self, defaults: KeyLimits) -> None:
        self._defaults = defaults
        self._keys: dict[str, _State] = {}

    def admit(self, key: Key, now_s: float) -> None:
        """Count one request. Raises Refusal 429 with the time to wait."""
        limits, state = self._defaults.of(key), self._keys.setdefault(key.name, _State())
        open_now = state.mine.streams + (state.others.streams if state.others else 0)
        if limits.streams is not None and open_now >= limits.streams:
            raise Refusal(
                429,
                f"key {key.name!r} has {open_now} requests open; its limit is {limits.streams} at "
                "once. Wait for one to end.",
                retry_after_s=1,
            )
        _refill(state, limits, now_s)
        for name, bucket in state.buckets.items():
            least = 1.0 if name == "requests" else 0.0
            if bucket.left < least:
                wait_s = bucket.wait_s(least)
                raise Refusal(
                    429,
                    f"key {key.name!r} has used up its {bucket.per_minute} {name} a minute. "
                    f"Try again in {max(1, math.ceil(wait_s))} s.",
                    retry_after_s=wait_s,
                )
        state.mine += Use(requests=1, streams=1)
        _take(state, 1, 0)

    def used(self, key: Key, tokens: int) -> None:
        """Prompt and output tokens of a request that `admit` counted."""
        state = self._keys[key.name]
        state.mine += Use(tokens=tokens)
        _take(state, 0, tokens)

    def ended(self, key: Key) -> None:
        """A request that `admit` counted is over."""
        self._keys[key.name].mine += Use(streams=-1)

    def totals(self) -> dict[str, Use]:
        """What went through this gateway."""
        return {name: state.mine for name, state in self._keys.items()}

    def learn(self, others: Mapping[str, Use], keys: Mapping[str, Key], now_s: float) -> None:
        """What went through all other gateways so far; the increase is taken off."""
        for name in others.keys() & keys.keys():
            use, state = others[name], self._keys.setdefault(name, _State())
            _refill(state, self._defaults.of(keys[name]), now_s)
            if before := state.others:
                _take(
                    state,
                    max(0, use.requests - before.requests),
                    max(0, use.tokens - before.tokens),
                )
            state.others = use


def _refill(state: _State, limits: KeyLimits, now_s: float) -> None:
    for name, per_minute in (
        ("requests", limits.requests_per_minute),
        ("tokens", limits.tokens_per_minute),
    ):
        if per_minute is None:
            state.buckets.pop(name, None)
            continue
        bucket = state.buckets.setdefault(name, Bucket(per_minute, per_minute, now_s))
        bucket.per_minute = per_minute
        bucket.refill(now_s)


def _take(state: _State, requests: int, tokens: int) -> None:
    for name, amount in (("requests", requests), ("tokens", tokens)):
        if name in state.buckets:
            state.buckets[name].left -= amount

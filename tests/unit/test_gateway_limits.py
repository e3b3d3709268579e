"""How much a key may use, here and at other gateways."""

import pytest

from services.gateway.errors import Refusal
from services.gateway.keys import Key
from services.gateway.limits import KeyLimits, Limiter
from services.messages import Use

KEY = Key(name="a", sha256="0" * 64)
OTHER = Key(name="b", sha256="1" * 64)


def refused(limiter: Limiter, key: Key, now_s: float) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        limiter.admit(key, now_s)
    assert refusal.value.status == 429
    assert int(refusal.value.headers["retry-after"]) >= 1
    return refusal.value


def test_a_minutes_requests_may_come_at_once_and_then_at_their_rate() -> None:
    limiter = Limiter(KeyLimits(requests_per_minute=6))
    for _ in range(6):
        limiter.admit(KEY, 0.0)
    refusal = refused(limiter, KEY, 0.0)
    assert refusal.headers["retry-after"] == "10"
    assert "6 requests a minute" in refusal.message
    limiter.admit(OTHER, 0.0)
    limiter.admit(KEY, 10.1)
    refused(limiter, KEY, 10.2)


def test_tokens_are_paid_off_before_the_next_request() -> None:
    limiter = Limiter(KeyLimits(tokens_per_minute=60))
    limiter.admit(KEY, 0.0)
    limiter.used(KEY, 90)
    assert refused(limiter, KEY, 0.0).headers["retry-after"] == "30"
    limiter.admit(KEY, 31.0)


def test_open_requests_are_counted_until_they_end() -> None:
    limiter = Limiter(KeyLimits(streams=2))
    limiter.admit(KEY, 0.0)
    limiter.admit(KEY, 0.0)
    assert "2 requests open" in refused(limiter, KEY, 0.0).message
    limiter.ended(KEY)
    limiter.admit(KEY, 0.0)


def test_a_keys_own_limits_stand_above_the_common_ones() -> None:
    limiter = Limiter(KeyLimits(requests_per_minute=1))
    mine = KEY.model_copy(update={"requests_per_minute": 3})
    for _ in range(3):
        limiter.admit(mine, 0.0)
    refused(limiter, mine, 0.0)


def test_what_other_gateways_let_through_counts_once_it_is_told() -> None:
    limiter = Limiter(KeyLimits(requests_per_minute=6, tokens_per_minute=100, streams=3))
    keys = {"a": KEY}
    limiter.learn({"a": Use(1000, 1000, 0)}, keys, 0.0)  # from before this gateway started
    limiter.admit(KEY, 0.0)
    limiter.learn({"a": Use(1005, 1000, 2)}, keys, 0.0)
    assert "3 requests open" in refused(limiter, KEY, 0.0).message
    limiter.learn({"a": Use(1005, 1000, 0)}, keys, 0.0)
    assert "6 requests a minute" in refused(limiter, KEY, 0.0).message
    limiter.learn({"a": Use(0, 0, 0)}, keys, 60.0)  # another gateway died
    limiter.admit(KEY, 60.0)
    limiter.learn({"a": Use(0, 500, 0)}, keys, 60.0)
    assert "100 tokens a minute" in refused(limiter, KEY, 60.0).message


def test_two_gateways_together_let_through_one_limit_and_what_one_report_misses() -> None:
    """The stated error: what comes in at the others between two reports."""
    gates = [Limiter(KeyLimits(requests_per_minute=60)) for _ in range(2)]
    keys, through = {"a": KEY}, 0
    for step in range(1200):  # a minute and a bit, 20 requests a second at each gateway
        now_s = step * 0.1
        for gate in gates:
            for _ in range(2):
                try:
                    gate.admit(KEY, now_s)
                    gate.ended(KEY)
                    through += 1
                except Refusal:
                    pass
        if step % 5 == 0:  # every half second
            for gate, other in (gates, gates[::-1]):
                gate.learn(other.totals(), keys, now_s)
    allowed = 60 + 60 * 2  # a bucket, and two minutes
    assert allowed * 0.95 <= through <= allowed + 2 * 20 * 0.5 + 2

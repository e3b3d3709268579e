"""Which shards are struck, with which signal, at which step, layer and moment of a request.

Plain data, shared by the test that asks, the engine that runs and the shards that suffer.
The batch is fixed and replicas are taken in rotation, so that every shard is sent one message per
layer and step, however fast it is: a strike falls where it should.
"""

import signal
from dataclasses import dataclass
from enum import Enum

FAMILY = "deepseek_v3"  # it has shared experts, which run while rows are away
LAYERS, EXPERTS = 3, 16  # MoE layers of that checkpoint, routed experts of a layer
SHARDS, REDUNDANCY = 4, 2  # every expert lies on two neighbours: shards 0 and 2 share none
TOKENS = 24  # of every prompt: one step of prefill, then 23 of decode
REPLY_TIMEOUT_S = 6.0

KILL, STOP = signal.SIGKILL, signal.SIGSTOP


class Moment(Enum):
    """Where a request is when the signal strikes."""

    IDLE = "idle"  # not sent yet: between two steps
    RECEIVED = "received"  # read from the socket, nothing computed
    COMPUTING = "computing"  # half of its rows have been through the kernel
    ANSWERED = "answered"  # computed, the reply not yet sent
    SENDING = "sending"  # the reply handed to the socket and perhaps on its way
    REPLIED = "replied"  # the reply has left, the next request lies unread


class Lie(Enum):
    """What a shard that goes on living answers in place of the truth."""

    NAN = "rows of layer"  # the last of its rows; the reason for which it is left names the layer
    SHORT = "answered ["  # one row too few
    STRANGE = "which was never sent"  # a number that nobody used


@dataclass(frozen=True)
class Strike:
    """One signal to one shard, or one lie of it."""

    shard: int
    signal: signal.Signals | Lie
    moment: Moment
    step: int  # of the engine; 0 is prefill
    layer: int = 0  # among the MoE layers
    is_resend: bool = False  # strike at the second request of that layer and step
    recovers: bool = False  # continued before its deadline

    @property
    def nth(self) -> int:
        """Which request for the layer is struck, counted from 1 at the begin of the run."""
        return self.step + 1 + self.is_resend


@dataclass(frozen=True)
class Scenario:
    """What befalls one run of the batch."""

    name: str
    strikes: tuple[Strike, ...]
    must_resend: bool = True


def _kill(name: str, strike: Strike, *, must_resend: bool = True) -> Scenario:
    return Scenario(f"killed {name}", (strike,), must_resend)


def _lie(name: str, strike: Strike, *, must_resend: bool = True) -> Scenario:
    return Scenario(f"answered {name}", (strike,), must_resend)


SCENARIOS = (
    _kill("between steps", Strike(1, KILL, Moment.IDLE, 10)),
    _kill("received in prefill, first layer", Strike(0, KILL, Moment.RECEIVED, 0, 0)),
    _kill("received in the last step and layer", Strike(3, KILL, Moment.RECEIVED, TOKENS - 1, 2)),
    _kill("computing prefill, last layer", Strike(2, KILL, Moment.COMPUTING, 0, 2)),
    _kill("computing early, middle layer", Strike(1, KILL, Moment.COMPUTING, 4, 1)),
    _kill("answered in prefill, middle layer", Strike(3, KILL, Moment.ANSWERED, 0, 1)),
    _kill("answered late, last layer", Strike(0, KILL, Moment.ANSWERED, 20, 2)),
    # What has left by then is chance, so whether rows go again is chance too.
    _kill("sending prefill", Strike(2, KILL, Moment.SENDING, 0, 0), must_resend=False),
    _kill("replied in mid-run", Strike(1, KILL, Moment.REPLIED, 12, 1)),
    Scenario(
        "two killed at once",
        (Strike(0, KILL, Moment.COMPUTING, 7, 1), Strike(2, KILL, Moment.COMPUTING, 7, 1)),
    ),
    Scenario("stopped received", (Strike(3, STOP, Moment.RECEIVED, 5, 1),)),
    Scenario("stopped answered", (Strike(0, STOP, Moment.ANSWERED, 9, 2),)),
    # Asked for again, not sent again: the shard is found out after all answers have come.
    _lie("NaN", Strike(2, Lie.NAN, Moment.ANSWERED, 3, 1), must_resend=False),
    _lie(
        "NaN in the last layer of prefill",
        Strike(1, Lie.NAN, Moment.ANSWERED, 0, 2),
        must_resend=False,
    ),
    _lie("too little", Strike(3, Lie.SHORT, Moment.ANSWERED, 8, 0)),
    _lie("a strange number", Strike(0, Lie.STRANGE, Moment.ANSWERED, 11, 1)),
    # The first one's late answer comes while the second holds the same rows back.
    Scenario(
        "stopped, late in the same step",
        (
            Strike(1, STOP, Moment.ANSWERED, 6, 1),
            Strike(2, STOP, Moment.COMPUTING, 6, 1, is_resend=True, recovers=True),
        ),
    ),
)

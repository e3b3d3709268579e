"""Who is in the pool: what each shard said last, who is suspected, who is sent away.

A shard that somebody could not reach is suspected until it reports again; one that answered
wrongly, or is complained about over and over although it reports, is sent away for good.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.orders import LoadExpert, ShardSlots, held_experts
from router.table import ShardAddress, ShardId

log = logging.getLogger(__name__)

MAX_COMPLAINTS = 3  # within `FORGIVEN_S`; a shard that reports and never answers is broken
FORGIVEN_S = 300.0
SAME_TROUBLE_S = 10.0  # several attention replicas meet one and the same stall

Slots = NDArray[np.int32]


@dataclass(slots=True)
class ShardState:
    """What is known of one shard."""

    address: ShardAddress
    held: Slots  # [L, S]
    loading: tuple[LoadExpert, ...]
    reported_s: float
    suspected_s: float | None = None  # an attention replica could not reach it
    complaints_s: list[float] = field(default_factory=list)
    is_leaving: bool = False  # it was told to stop, and serves until others have what it holds

    @property
    def slots(self) -> ShardSlots:
        """As `moves` wants it."""
        return ShardSlots(self.held, self.loading)


@dataclass(slots=True)
class Members:
    """All shards that are heard of."""

    shards: dict[ShardId, ShardState] = field(default_factory=dict)
    expelled: dict[ShardId, str] = field(default_factory=dict)  # shard → why

    def live(self) -> dict[ShardId, ShardState]:
        """Those that may be sent rows, by id."""
        states = sorted(self.shards.items())
        return {s: state for s, state in states if state.suspected_s is None}

    def staying(self) -> dict[ShardId, ShardState]:
        """The live ones that experts may be placed on."""
        return {s: state for s, state in self.live().items() if not state.is_leaving}

    def leave(self, shard_id: ShardId) -> bool:
        """A shard that has reported is to stop; returns whether that is new."""
        state = self.shards[shard_id]
        is_new = not state.is_leaving
        if is_new:
            log.info("shard is leaving: shard=%s", shard_id)
        state.is_leaving = True
        return is_new

    def dismiss(self, shard_id: ShardId) -> None:
        """A leaving shard goes now."""
        log.info("shard left: shard=%s", shard_id)
        self.shards.pop(shard_id, None)

    def report(
        self, address: ShardAddress, held: Slots, loading: tuple[LoadExpert, ...], *, now_s: float
    ) -> bool:
        """A shard's report; returns whether it says anything new."""
        known = self.shards.get(address.shard_id)
        if known is None:
            log.info("shard registered: shard=%s host=%s", address.shard_id, address.host)
            self.shards[address.shard_id] = ShardState(address, held, loading, now_s)
            return True
        is_back = known.suspected_s is not None and now_s > known.suspected_s
        if is_back:  # it reported after the complaint: it lives
            log.info("shard is back: shard=%s", address.shard_id)
            known.suspected_s = None
        is_new = known.loading != loading or not np.array_equal(known.held, held)
        known.held, known.loading, known.reported_s = held, loading, now_s
        return is_back or is_new

    def suspect(self, shard_id: ShardId, *, by: str, reason: str, now_s: float) -> bool:
        """Somebody could not reach it; returns whether that is new."""
        state = self.shards.get(shard_id)
        if state is None or state.suspected_s is not None:
            return False
        log.warning("shard suspected: shard=%s by=%s reason=%s", shard_id, by, reason)
        state.suspected_s = now_s
        recent = [s for s in state.complaints_s if now_s - s < FORGIVEN_S]
        is_another = not recent or now_s - recent[-1] > SAME_TROUBLE_S
        state.complaints_s = [*recent, now_s] if is_another else recent
        if len(state.complaints_s) >= MAX_COMPLAINTS and self._can_do_without(state):
            again = f"{MAX_COMPLAINTS} complaints within {FORGIVEN_S:.0f} s, the last: {reason}"
            self.expel(shard_id, by=by, reason=again)
        return True

    def _can_do_without(self, state: ShardState) -> bool:
        """Whether other live shards hold all that it holds."""
        n_experts = 1 + max(int(s.held.max(initial=-1)) for s in self.shards.values())
        others = [held_experts(s.held, n_experts) for s in self.live().values() if s is not state]
        mine = held_experts(state.held, n_experts)
        return bool(others) and not (mine & ~np.logical_or.reduce(others)).any()

    def expel(self, shard_id: ShardId, *, by: str, reason: str) -> bool:
        """It must not serve again; returns whether that is new."""
        if shard_id in self.expelled:
            return False
        log.error("shard expelled: shard=%s by=%s reason=%s", shard_id, by, reason)
        self.expelled[shard_id] = reason
        return self.shards.pop(shard_id, None) is not None

    def expire(self, lease_s: float, *, now_s: float) -> list[ShardId]:
        """Forget those that are silent for longer than their lease."""
        silent = [s for s, state in self.shards.items() if now_s - state.reported_s > lease_s]
        for shard_id in silent:
            silent_s = now_s - self.shards.pop(shard_id).reported_s
            log.warning("shard lost: shard=%s silent_s=%.1f", shard_id, silent_s)
        return silent

    def holds_all(self, n_experts: int) -> bool:
        """Whether the live shards hold every expert of every layer."""
        live = list(self.live().values())
        slots = np.concatenate([state.held for state in live], axis=1)
        return bool(held_experts(slots, n_experts).all())

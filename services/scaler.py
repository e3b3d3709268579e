"""Measures the shards and attention replicas, and keeps what `router.scaling` decides of it.

Part of the controller, which tells it to both kinds with its answers; `services.autoscaling` then
has Serve do it.
"""

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from monitoring.metric import PREFIX
from monitoring.totals import Account
from router.planning import ShardPace
from router.scaling import (
    AttentionLoad,
    Need,
    ScalingLimits,
    ScalingState,
    attention_need,
    decide,
    pool_load,
    pool_need,
)
from router.table import ShardId
from services.config import DeploymentConfig

log = logging.getLogger(__name__)

SHARDS, REPLICAS = "shards", "attention replicas"
LOOK_S = 0.5  # between two looks
WINDOW_S = 10.0  # of the shards' work that a look is about: a few requests even when few come


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an attention replica has in hand: requests that run or wait, and KV cache in use 0-1."""

    requests: float = 0.0
    kv_cache_ratio: float = 0.0


def engine_load(account: Account | None) -> EngineLoad:
    """From a replica's account; nothing before its engine started, or with `disable_log_stats`."""
    states = {} if account is None else account.states

    def state(name: str) -> float:
        found = states.get((PREFIX + name,))
        return 0.0 if found is None else float(found)

    requests = state("engine_running_requests") + state("engine_waiting_requests")
    return EngineLoad(requests, state("kv_cache_used_ratio"))


class Scaler:
    """Feed it what was reported; read `wanted_shards` and `wanted_replicas` (0: do not change)."""

    def __init__(self, config: DeploymentConfig) -> None:
        self._pool, self._attention = config.pool.autoscaling, config.attention.autoscaling
        self._shards: ScalingState | None = None
        self._replicas: ScalingState | None = None
        self._paces: deque[tuple[float, dict[ShardId, ShardPace]]] = deque()

    @property
    def wanted_shards(self) -> int:
        return self._shards.wanted if self._shards else 0

    @property
    def wanted_replicas(self) -> int:
        return self._replicas.wanted if self._replicas else 0

    @property
    def said(self) -> tuple[str, ...]:
        """How many are wanted, and why; one line for each kind that is scaled."""
        lines = []
        for what, section, state in (
            (SHARDS, self._pool, self._shards),
            (REPLICAS, self._attention, self._replicas),
        ):
            if section is not None:
                wanted = "not known yet" if state is None else f"{state.wanted} wanted"
                lines.append(f"{what}: {wanted}, {(state and state.reason) or 'as at the start'}")
        return tuple(lines)

    def look(
        self,
        paces: Mapping[ShardId, ShardPace],
        engines: Mapping[str, EngineLoad],
        waiting: int,
        now_s: float,
    ) -> None:
        """Decide anew. paces: of the shards that stay; engines: of the attention replicas.

        waiting: requests that are still in the gateways.

        The first look takes what there is for what was wanted, so a controller that comes back
        changes nothing by that alone.
        """
        if self._paces and now_s - self._paces[-1][0] < LOOK_S:
            return
        self._paces.append((now_s, dict(paces)))
        while now_s - self._paces[0][0] > WINDOW_S:
            self._paces.popleft()
        if self._pool and paces:
            state = self._shards or ScalingState(len(paces))
            self._shards = self._pool_state(state, now_s)
        if self._attention and engines:
            replicas = self._replicas or ScalingState(len(engines))
            self._replicas = self._attention_state(replicas, engines, waiting, now_s)

    def _pool_state(self, state: ScalingState, now_s: float) -> ScalingState:
        assert self._pool is not None
        (then_s, before), (_, after) = self._paces[0], self._paces[-1]
        if then_s >= now_s:
            return state
        load = pool_load(before, after, now_s - then_s)
        limits = ScalingLimits(
            self._pool.min_shards,
            self._pool.max_shards,
            self._pool.grow_after_s,
            self._pool.shrink_after_s,
        )
        busy_ratio, queue = self._pool.target_busy_ratio, self._pool.target_queue
        need = pool_need(load, busy_ratio=busy_ratio, queue=queue)
        return _decided(SHARDS, state, need, limits, now_s)

    def _attention_state(
        self, state: ScalingState, engines: Mapping[str, EngineLoad], waiting: int, now_s: float
    ) -> ScalingState:
        assert self._attention is not None
        load = AttentionLoad(
            len(engines),
            waiting + sum(engine.requests for engine in engines.values()),
            sum(engine.kv_cache_ratio for engine in engines.values()) / len(engines),
        )
        need = attention_need(
            load,
            requests=self._attention.target_requests,
            kv_cache_ratio=self._attention.target_kv_cache_ratio,
        )
        limits = ScalingLimits(
            self._attention.min_replicas,
            self._attention.max_replicas,
            self._attention.grow_after_s,
            self._attention.shrink_after_s,
        )
        return _decided(REPLICAS, state, need, limits, now_s)


def _decided(
    what: str, state: ScalingState, need: Need, limits: ScalingLimits, now_s: float
) -> ScalingState:
    after = decide(state, need, limits, now_s)
    if after.wanted != state.wanted:
        log.info(
            "scaling: %s from=%s to=%s reason=%s", what, state.wanted, after.wanted, after.reason
        )
    return after

"""How many shards and attention replicas there should be, from what those that run have done.

Pure: the controller measures and keeps the state, `services.autoscaling` has Serve do what is
decided here. The two kinds are decided apart, with the same rule of when to change.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.planning import ShardPace
from router.table import ShardId


@dataclass(frozen=True, slots=True)
class ScalingLimits:
    """Bounds, and how long a need must last. Growing is urgent, shrinking is not."""

    least: int
    most: int
    grow_after_s: float
    shrink_after_s: float


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What the shards did together over the last seconds.

    capacity_rows_per_s: of one shard that computes all the time; 0 if nothing was computed.
    queue: requests that waited at a shard on average.
    """

    shards: int
    rows_per_s: float
    capacity_rows_per_s: float
    queue: float


@dataclass(frozen=True, slots=True)
class AttentionLoad:
    """What the attention replicas have in hand now, all together; kv_cache_ratio: mean, 0-1."""

    replicas: int
    requests: float
    kv_cache_ratio: float


@dataclass(frozen=True, slots=True)
class Need:
    """How many would do, and why."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What is wanted, and since when something else is needed (None: it is not)."""

    wanted: int
    reason: str = ""
    more_since_s: float | None = None
    fewer_since_s: float | None = None
    peak: int = 0  # the largest need since `fewer_since_s`


def least_shards(n_experts: int, redundancy: int, slots_per_layer: int) -> int:
    """Shards without which there is no room for every expert `redundancy` times."""
    return max(redundancy, -(-n_experts * redundancy // slots_per_layer))


def pool_load(
    before: Mapping[ShardId, ShardPace], after: Mapping[ShardId, ShardPace], elapsed_s: float
) -> PoolLoad:
    """What happened between two looks at the shards' totals. elapsed_s: > 0.

    Only shards that were there both times count: the totals of one that comes back are old.
    """
    done = [_since(before[s], pace) for s, pace in after.items() if s in before]
    rows, busy_s = sum(d.rows for d in done), sum(d.busy_s for d in done)
    return PoolLoad(
        shards=len(after),
        rows_per_s=rows / elapsed_s,
        capacity_rows_per_s=rows / busy_s if busy_s > 0 else 0.0,
        queue=sum(d.queued_s for d in done) / elapsed_s / len(after) if after else 0.0,
    )


def _since(before: ShardPace, after: ShardPace) -> ShardPace:
    return ShardPace(
        max(0, after.rows - before.rows),
        max(0.0, after.busy_s - before.busy_s),
        queued_s=max(0.0, after.queued_s - before.queued_s),
    )


def pool_need(load: PoolLoad, *, busy_ratio: float, queue: float) -> Need:
    """Shards for this load, each to be busy `busy_ratio` of the time with `queue` waiting."""
    by_rows = by_queue = 0.0
    if load.capacity_rows_per_s > 0:
        by_rows = load.rows_per_s / (load.capacity_rows_per_s * busy_ratio)
        by_queue = load.shards * load.queue / queue
    if by_queue > by_rows:
        reason = f"{load.queue:.2f} requests wait at a shard, aim {queue:g}"
    else:
        reason = (
            f"{load.rows_per_s:.0f} rows/s, a shard can do {load.capacity_rows_per_s:.0f}, "
            f"aim {busy_ratio:.0%} of that"
        )
    return Need(_whole(max(by_rows, by_queue)), reason)


def attention_need(load: AttentionLoad, *, requests: float, kv_cache_ratio: float) -> Need:
    """Replicas for this load, each to have `requests` and `kv_cache_ratio` of its cache in use."""
    by_requests = load.requests / requests
    by_cache = load.replicas * load.kv_cache_ratio / kv_cache_ratio
    if by_cache > by_requests:
        reason = f"{load.kv_cache_ratio:.0%} of the KV cache in use, aim {kv_cache_ratio:.0%}"
    else:
        reason = f"{load.requests:.0f} requests, aim {requests:g} a replica"
    return Need(_whole(max(by_requests, by_cache)), reason)


def _whole(count: float) -> int:
    return max(1, math.ceil(count - 1e-9))


def decide(state: ScalingState, need: Need, limits: ScalingLimits, now_s: float) -> ScalingState:
    """What is wanted from now on; `reason` says why it changed last.

    It grows to the need once that has been higher for `grow_after_s`, and shrinks to the highest
    need of the last `shrink_after_s` once that has been lower throughout. The bounds hold at once.
    """
    count = min(max(need.count, limits.least), limits.most)
    bounded = min(max(state.wanted, limits.least), limits.most)
    if bounded != state.wanted:
        return ScalingState(bounded, f"bounds are {limits.least} to {limits.most}")
    if count > state.wanted:
        since_s = now_s if state.more_since_s is None else state.more_since_s
        if now_s - since_s >= limits.grow_after_s:
            return ScalingState(count, need.reason)
        return replace(state, more_since_s=since_s, fewer_since_s=None, peak=0)
    if count < state.wanted:
        since_s = now_s if state.fewer_since_s is None else state.fewer_since_s
        peak = max(state.peak, count)
        if now_s - since_s >= limits.shrink_after_s:
            return ScalingState(peak, need.reason)
        return replace(state, more_since_s=None, fewer_since_s=since_s, peak=peak)
    return replace(state, more_since_s=None, fewer_since_s=None, peak=0)

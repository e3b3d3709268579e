"""A placement as a piece of work: a snapshot goes in, a target and the reason for it come out.

The controller decides when (`control`), a thread may do it here, and the verdict comes back. It
takes up to seconds for hundreds of experts on hundreds of shards.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from router.choose import Policy
from router.errors import ConfigError
from router.placement import ShardRoom, Slots, place
from router.rebalance import Decision, decide, improved_layers
from router.table import ShardId

MEMBERS_CHANGED = "members changed"
LOADS_CHANGED = "loads"
ASKED = "asked for"


@dataclass(frozen=True, slots=True)
class ShardPace:
    """What a shard did since its start, and the seconds that it took."""

    rows: int = 0
    busy_s: float = 0.0
    loaded: int = 0  # experts
    load_s: float = 0.0
    queued_s: float = 0.0  # that requests waited, added up


@dataclass(frozen=True, slots=True)
class PlacementJob:
    """What a placement is made from.

    cause: MEMBERS_CHANGED fills an empty shard whatever that costs; what is ASKED is done if it
        is better at all; anything else must repair, or save more than its moves cost.
    loads: [L, E] float64, rows over the time that a placement should last.
    current: [L, S] int32 per live shard, what is in place.
    move_cost_rows: see `rebalance.decide`.
    """

    cause: str
    loads: NDArray[np.float64]
    rooms: tuple[ShardRoom, ...]
    current: Mapping[ShardId, Slots]
    redundancy: int
    policy: Policy
    move_cost_rows: float

    @property
    def members(self) -> frozenset[ShardId]:
        """The shards that it is for."""
        return frozenset(room.shard_id for room in self.rooms)


@dataclass(frozen=True, slots=True)
class Placed:
    """The outcome. target: None if there is no room for every expert once."""

    job: PlacementJob
    target: Mapping[ShardId, Slots] | None
    redundancy: int  # what there was room for
    decision: Decision


def move_cost(paces: Iterable[ShardPace]) -> float:
    """Rows that a shard could serve while it loads one expert; 0 while it is not known."""
    costs = [
        (pace.load_s / pace.loaded) / (pace.busy_s / pace.rows)
        for pace in paces
        if pace.loaded and pace.rows and pace.busy_s > 0
    ]
    return float(np.median(costs)) if costs else 0.0


def run(job: PlacementJob) -> Placed:
    """Place with as much of the redundancy as there is room for, and judge the result."""
    problem = ""
    for redundancy in range(job.redundancy, 0, -1):
        try:
            target = place(job.loads, job.rooms, redundancy=redundancy, current=job.current)
        except ConfigError as error:
            problem = problem or str(error)
            continue
        return _judge(job, target, redundancy)
    return Placed(job, None, 0, Decision(False, problem, 1.0, 1.0, 0))


def _judge(job: PlacementJob, target: Mapping[ShardId, Slots], redundancy: int) -> Placed:
    is_filling = job.cause == MEMBERS_CHANGED and any(
        bool((held < 0).all()) for held in job.current.values()
    )
    cost = 0.0 if job.cause == ASKED else job.move_cost_rows
    terms = partial(
        decide, loads=job.loads, redundancy=redundancy, move_cost_rows=cost, policy=job.policy
    )
    verdict = terms(job.current, target)
    if is_filling:
        if verdict.n_moves:
            verdict = replace(verdict, accepted=True, reason=f"fills a new shard; {verdict.reason}")
        return Placed(job, target, redundancy, verdict)
    worthwhile = improved_layers(
        job.current,
        target,
        job.loads,
        redundancy=redundancy,
        move_cost_rows=cost,
        policy=job.policy,
    )
    part = terms(job.current, worthwhile)
    if part.n_moves:
        return Placed(job, worthwhile, redundancy, part)
    return Placed(job, target, redundancy, verdict)

"""When a placement is due and what becomes of its outcome; the controller's slower half.

Placements follow members that come and go, loads that drift, and operators who ask. The work
itself is a `planning` job, which the controller may do in a thread.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router import planning
from router.choose import Policy
from router.load import LoadWindow, empty_window, loads_at, observe
from router.members import Members, ShardState
from router.placement import ShardRoom, Slots
from router.planning import Placed, PlacementJob
from router.table import ShardId

log = logging.getLogger(__name__)

STUCK_S = 60.0  # moves that get nowhere for so long no longer hold up a rebalance


@dataclass(frozen=True, slots=True)
class PlacerSettings:
    """The operator's choices about placements."""

    shards: int  # how many the pool should have at first
    redundancy: int  # distinct shards an expert should be on
    settle_s: float  # how long to wait for shards that have not reported since the start
    replacement_grace_s: float  # after a death, wait so long for a new shard before moving experts
    policy: Policy = Policy.LEAST_TOKENS  # of the attention replicas
    rebalance_interval_s: float | None = None  # between looks at the loads; None: never
    load_half_life_s: float = 15.0
    payback_s: float | None = None  # of the present load, to pay for moves; None: the window

    @property
    def window_s(self) -> float:
        """Seconds of steady load that a window with this half-life adds up to."""
        return self.load_half_life_s / math.log(2)


@dataclass(slots=True)
class Placer:
    """Feed it loads and the time; `due` hands out jobs, `take` their outcomes."""

    settings: PlacerSettings
    target: dict[ShardId, Slots] = field(default_factory=dict)
    last: Placed | None = None
    last_s: float = 0.0
    moves_left: int = 0  # experts that the target wants and that are not in place
    waiting_for: str = ""
    expected: int = field(init=False)  # shards that there should be now
    _window: LoadWindow | None = None
    _first_s: float | None = None
    _lost_s: float | None = None
    _progress_s: float = 0.0
    _looked_s: float = 0.0
    _is_asked: bool = False
    _job: PlacementJob | None = None
    _placed_for: frozenset[ShardId] = frozenset()

    def __post_init__(self) -> None:
        self.expected = self.settings.shards

    def observe(self, expert_rows: NDArray[np.int64], now_s: float) -> None:
        """Rows [L, E] that the gate gave to each expert since the last call."""
        if self._window is None or self._window.rows.shape != expert_rows.shape:
            half_life_s = self.settings.load_half_life_s
            self._window = empty_window(*expert_rows.shape, half_life_s=half_life_s, now_s=now_s)
        self._window = observe(self._window, expert_rows, now_s=now_s)

    def loads(self, now_s: float) -> NDArray[np.float64] | None:
        """[L, E] recent rows of each expert, decayed; None without traffic."""
        if self._window is None:
            return None
        loads = loads_at(self._window, now_s=now_s)
        return loads if loads.sum() >= 1 else None

    def count_moves(self, live: Mapping[ShardId, ShardState], now_s: float) -> None:
        """How far the target is: brings `moves_left` up to date."""
        left = 0
        for shard_id, target in self.target.items():
            if shard_id in live:
                held = live[shard_id].held
                present = (target[:, :, None] == held[:, None, :]).any(axis=2)
                left += int(np.count_nonzero(~present & (target >= 0)))
        if left != self.moves_left:
            self.moves_left, self._progress_s = left, now_s

    def ask(self) -> None:
        """Make a placement due whatever the interval, when moves under way are over."""
        self._is_asked = True

    def due(
        self, members: Members, n_experts: int, now_s: float, *, move_cost_rows: float = 0.0
    ) -> PlacementJob | None:
        """A placement that should be made now; none while one is being made."""
        live = members.staying()
        if self._job is not None or not live:
            return None
        self._first_s = now_s if self._first_s is None else self._first_s
        cause = self._cause(members, live, n_experts, now_s)
        loads = self.loads(now_s)
        shape = (next(iter(live.values())).held.shape[0], n_experts)
        if cause in (planning.LOADS_CHANGED, planning.ASKED):
            self._looked_s = now_s
        if not cause or (cause == planning.LOADS_CHANGED and loads is None):
            return None
        self._is_asked = False
        self._job = PlacementJob(
            cause,
            loads if loads is not None and loads.shape == shape else np.ones(shape),
            tuple(ShardRoom(s, m.address.host, m.held.shape[1]) for s, m in live.items()),
            {s: state.held for s, state in live.items()},
            self.settings.redundancy,
            self.settings.policy,
            move_cost_rows * self._window_share(),
        )
        return self._job

    def _window_share(self) -> float:
        """Of the payback time that the window is, so that moves are paid by as much of it."""
        return self.settings.window_s / (self.settings.payback_s or self.settings.window_s)

    def take(self, placed: Placed, members: Members, now_s: float) -> bool:
        """The outcome of the job; returns whether the target is a new one.

        It is dropped if shards have come or gone since.
        """
        assert placed.job is self._job
        self._job = None
        if frozenset(members.staying()) != placed.job.members:
            return False
        self.last, self.last_s = placed, now_s
        self._log(placed)
        if placed.job.cause == planning.MEMBERS_CHANGED:
            self._placed_for = placed.job.members
        self.waiting_for = placed.decision.reason if placed.target is None else ""
        if placed.target is None or not placed.decision.accepted:
            return False
        self.target = dict(placed.target)
        self._progress_s = self._looked_s = now_s
        return True

    def _log(self, placed: Placed) -> None:
        decision = placed.decision
        log.info(
            "placement %s: cause=%s reason=%s moves=%s imbalance=%.2f imbalance_after=%.2f "
            "shards=%s redundancy=%s wanted=%s",
            "accepted" if decision.accepted else "refused",
            placed.job.cause,
            decision.reason,
            decision.n_moves,
            decision.imbalance_before,
            decision.imbalance_after,
            len(placed.job.rooms),
            placed.redundancy,
            self.settings.redundancy,
        )

    def _cause(
        self, members: Members, live: Mapping[ShardId, ShardState], n_experts: int, now_s: float
    ) -> str:
        """Why a placement is due now; empty if none is."""
        if frozenset(live) != self._placed_for:
            may = self._may_place(members, live, n_experts, now_s)
            return planning.MEMBERS_CHANGED if may else ""
        self._lost_s = None
        if self.moves_left and now_s - self._progress_s < STUCK_S:
            return ""
        if self._is_asked:
            return planning.ASKED
        interval_s = self.settings.rebalance_interval_s
        if interval_s is None or now_s - self._looked_s < interval_s:
            return ""
        return planning.LOADS_CHANGED

    def _may_place(
        self, members: Members, live: Mapping[ShardId, ShardState], n_experts: int, now_s: float
    ) -> bool:
        """Whether to (re)place now, or to wait for shards that are expected."""
        assert self._first_s is not None
        if len(live) >= self.expected or len(live) < len(members.live()):
            return True
        if self._placed_for and self._placed_for < live.keys():
            return True  # one more, and more may follow
        waited_s = now_s - self._first_s
        if waited_s <= self.settings.settle_s:
            return False  # after a restart the others will report within moments
        if not self._placed_for and all((s.held < 0).all() for s in live.values()):
            self.waiting_for = f"shards: {len(live)} of {self.expected} have reported"
            return waited_s > self.settings.replacement_grace_s
        if not members.holds_all(n_experts):
            return True  # an expert is nowhere: load it wherever there is room
        if self._lost_s is None:
            self._lost_s = now_s
        return now_s - self._lost_s > self.settings.replacement_grace_s

"""A controller's decisions with shards that do what they are told; the test holds the clock."""

from dataclasses import dataclass, field

import numpy as np

from router import planning
from router.control import ControlSettings, ControlState
from router.moves import LoadExpert
from router.placer import PlacerSettings
from router.table import ShardAddress, ShardId

LAYERS, EXPERTS = 2, 4
Slots = np.ndarray


def settings(shards: int = 2, redundancy: int = 1, **more: float) -> ControlSettings:
    placer = PlacerSettings(shards, redundancy, settle_s=2, replacement_grace_s=60, **more)  # type: ignore[arg-type]
    return ControlSettings(placer, lease_s=5)


@dataclass
class FakeShard:
    """Does what it is told, one report later."""

    name: str
    n_slots: int
    held: Slots = field(init=False)
    loading: tuple[LoadExpert, ...] = ()
    expelled: str = ""
    rest_ratio: float = 0.0
    is_leaving: bool = False
    has_left: bool = False

    def __post_init__(self) -> None:
        self.held = np.full((LAYERS, self.n_slots), -1, np.int32)

    @property
    def id(self) -> ShardId:
        return ShardId(self.name)

    def report(self, state: ControlState, now_s: float) -> None:
        orders = state.on_shard(
            ShardAddress(self.id, "host"),
            n_experts=EXPERTS,
            held=self.held.copy(),
            loading=self.loading,
            now_s=now_s,
            is_leaving=self.is_leaving,
        )
        self.has_left |= orders.may_leave
        self.loading += tuple(o for o in orders.loads if o not in self.loading)
        self.expelled, self.rest_ratio = orders.expelled, orders.rest_ratio

    def load(self) -> None:
        """Finish what it is loading."""
        for order in self.loading:
            self.held[order.layer, order.slot] = order.expert
        self.loading = ()


@dataclass
class Cluster:
    """A controller and its shards."""

    state: ControlState
    shards: list[FakeShard]
    now_s: float = 0.0
    reader_version: int = 0
    move_cost_rows: float = 0.0

    def turn(self, seconds: float = 0.5) -> None:
        """Everybody reports once, and loads what it was told."""
        self.now_s += seconds
        for shard in self.shards:
            if not shard.has_left:
                shard.report(self.state, self.now_s)
                shard.load()
        self.place()
        if self.state.table is not None:
            self.state.on_reader("reader", self.reader_version, {}, now_s=self.now_s)
            self.reader_version = self.state.table.version

    def place(self) -> None:
        """What the controller's clock does."""
        self.state.step(self.now_s)
        job = self.state.placement_due(self.now_s, move_cost_rows=self.move_cost_rows)
        if job is not None:
            self.state.on_placed(planning.run(job), self.now_s)

    def settle(self) -> None:
        for _ in range(12):
            self.turn()

    def holders(self, layer: int, expert: int) -> set[str]:
        assert self.state.table is not None
        return set(self.state.table.shards_of(layer, expert))

    def redundancy(self) -> int:
        """Of the published table."""
        assert self.state.table is not None
        return self.state.table.redundancy()

    def single(self) -> int:
        """An expert that one shard has to serve alone."""
        return next(e for e in range(EXPERTS) if len(self.holders(0, e)) == 1)


def cluster(n_shards: int = 2, n_slots: int = 2, redundancy: int = 1) -> Cluster:
    shards = [FakeShard(f"s{i}", n_slots) for i in range(n_shards)]
    return Cluster(ControlState(settings(n_shards, redundancy)), shards)

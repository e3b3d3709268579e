"""A pool as the live page is told of it: what the controller would say, by a script."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitoring.metric import PREFIX, TTFT_S
from monitoring.snapshot import Snapshot
from monitoring.totals import Key, number
from services.messages import ControllerStatus, DecisionStatus, ShardStatus

GIB = 1024**3
EXAMPLE = DecisionStatus(3.0, "loads", True, "the heaviest shard gets 21% less", 12, 1.42, 1.03)


@dataclass
class Scene:
    """Change its fields at any time; `status` and `metrics` are what a `LiveSource` has."""

    layers: int = 4
    experts: int = 8
    shards: list[str] = field(default_factory=lambda: ["s0", "s1", "s2"])
    redundancy: int = 2
    tokens_per_s: float = 0.0
    states: dict[str, str] = field(default_factory=dict)  # of shards, where not serving
    version: int = 7
    decision: DecisionStatus | None = None
    is_up: bool = True
    n_looks: int = 0
    drops: dict[str, int] = field(default_factory=dict)  # experts that a shard has given up

    def __post_init__(self) -> None:
        self.wanted = list(self.shards) or ["s0", "s1", "s2"]
        self._placed: dict[str, list[list[int]]] = {}
        self._began_s = time.monotonic()
        rng = np.random.default_rng(0)
        self.popularity = rng.lognormal(0, 0.7, (self.layers, self.experts))

    async def status(self) -> ControllerStatus:
        if not self.is_up:
            raise TimeoutError("away")
        self.n_looks += 1
        least = int(self.replicas().min())
        version = self.version if self.shards else 0
        return ControllerStatus(
            version, least > 0, least, "", tuple(self._shard(s) for s in self.shards),
            {"a0": version}, 1.07 if self.tokens_per_s else None,
            last_decision=self.decision,
        )  # fmt: skip

    async def metrics(self, timeout_s: float) -> Snapshot:
        replicas, served = self.replicas(), self.tokens_per_s * self._passed_s
        ttft = np.zeros(len(TTFT_S) + 2)
        ttft[3] = served
        values: dict[Key, NDArray[np.float64]] = {
            ("expert_replicas",): replicas,
            ("experts_without_replica",): number(int((replicas == 0).sum())),
            ("experts_below_redundancy",): number(int((replicas < self.redundancy).sum())),
            ("redundancy_target",): number(self.redundancy),
            ("shards_wanted",): number(len(self.wanted)),
            ("output_tokens_total",): number(served),
            ("prompt_tokens_total",): number(2 * served),
            ("ttft_seconds",): ttft,
            ("engine_running_requests", "0"): number(3),
            ("engine_waiting_requests", "0"): number(0),
        }
        for place, shard in enumerate(self.shards):
            values["shard_info", str(place), shard, "host"] = number(1)
            values["shard_rows_total", str(place)] = number(8 * served)
            values["shard_compute_seconds_total", str(place)] = number(0.4 * self._passed_s)
        if self.tokens_per_s:
            values["layer_imbalance_ratio",] = 1.0 + 0.1 * np.arange(self.layers) / self.layers
        loads = self.popularity * self.tokens_per_s
        named = {(PREFIX + key[0], *key[1:]): value for key, value in values.items()}
        return Snapshot(named, loads if self.tokens_per_s else None)

    def held(self, shard: str) -> list[list[int]]:
        """Of each layer: an expert is on `redundancy` neighbours, which differ by layer."""
        if shard not in self._placed:
            n, place = len(self.wanted), self.wanted.index(shard)
            self._placed[shard] = [
                [e for e in range(self.experts) if (place - e - layer) % n < self.redundancy]
                for layer in range(self.layers)
            ]
        return [layer[self.drops.get(shard, 0) :] for layer in self._placed[shard]]

    def replicas(self) -> NDArray[np.float64]:
        """[L, E]"""
        counts = np.zeros((self.layers, self.experts))
        for shard in self.shards:
            for layer, experts in enumerate(self.held(shard)):
                counts[layer, experts] += 1
        return counts

    def lose(self, shard: str) -> None:
        """It died, and there is a table without it."""
        self.shards.remove(shard)
        self.version += 1

    def regain(self, shard: str) -> None:
        """Its place is taken, and filled."""
        self.shards = [s for s in self.wanted if s in {*self.shards, shard}]
        self.version += 1

    @property
    def _passed_s(self) -> float:
        return time.monotonic() - self._began_s

    def _shard(self, name: str) -> ShardStatus:
        held = self.held(name)
        used = sum(map(len, held))
        room = -(-self.experts * self.redundancy // len(self.wanted)) + 1
        return ShardStatus(
            name, "0f4c2d9a77", self.states.get(name, "serving"), used, room * self.layers, 0,
            tuple(map(tuple, held)), 0, 2 * GIB, GIB, GIB,
        )  # fmt: skip

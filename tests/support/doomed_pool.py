"""A pool of doomed shards and the desk that hands out their tables.

It arms the shards of a scenario, acts between the engine's steps and while one waits, says what
became of everybody, and puts fresh shards in the place of those that were struck.
`doomed_pool_process` is how the engine's process speaks to it.
"""

import time
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from router.choose import Policy
from router.table import build_table
from tests.support.kill_scenarios import (
    EXPERTS,
    KILL,
    LAYERS,
    REDUNDANCY,
    REPLY_TIMEOUT_S,
    SHARDS,
    STOP,
    Moment,
    Scenario,
)
from tests.support.pool import Desk, spread
from tests.support.shard_process import PATIENCE_S, ShardProcess, start_nursery

TRAVEL_S = 0.1  # what a shard has sent is with the engine after this
QUIET = Scenario("nothing happens", ())


@dataclass
class Aftermath:
    """What became of the shards of a scenario; lists follow its strikes."""

    table_version: int
    names: list[str] = field(default_factory=list)
    struck_steps: list[int | None] = field(default_factory=list)
    exitcodes: list[int | None] = field(default_factory=list)
    was_stopped: list[bool] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)  # shard → why, as attention reported


class DoomedPool:
    """The shards, by place, and what the current scenario wants of them."""

    def __init__(self, model: Path, run_dir: Path) -> None:
        start_nursery()
        self._model, self._run_dir = model, run_dir
        self._desk = Desk(f"ipc://{run_dir}/feed")
        layout = spread(
            "s", n_layers=LAYERS, n_experts=EXPERTS, n_shards=SHARDS, redundancy=REDUNDANCY
        )
        self._held = [layout.shards[f"s-{place}"] for place in range(SHARDS)]
        self._started = 0
        self._version = self._adopted_version = 0
        self._lost: dict[str, str] = {}
        self._step = -1
        self._scenario = QUIET
        self._shards: list[ShardProcess] = []

    def engine_args(self) -> dict[str, Any]:
        """What makes an engine join here; rows go by the batch alone, not by measured load."""
        return self._desk.engine_args(reply_timeout_s=REPLY_TIMEOUT_S, policy=Policy.EVEN_SPLIT)

    def start(self) -> None:
        """Start every shard and publish the first table."""
        for place in range(SHARDS):
            self._shards.append(self._new_shard(place))
        self._publish()

    def _new_shard(self, place: int) -> ShardProcess:
        self._started += 1
        name = f"s-{place}.{self._started}"
        return ShardProcess(name, self._held[place], model=self._model, run_dir=self._run_dir)

    def _publish(self) -> None:
        self._version += 1
        holdings = [(s.wait_ready(), s.held) for s in self._shards]
        table = build_table(self._version, holdings, n_layers=LAYERS, n_experts=EXPERTS)
        self._desk.publish(table)

    def is_adopted(self) -> bool:
        """Whether the engine has said that it uses the newest table."""
        self._take_report()
        return self._adopted_version == self._version

    def _take_report(self) -> None:
        report = self._desk._desk.take_report()
        self._adopted_version = report.table_version
        self._lost.update({str(s): why for s, why in (report.lost | report.wrong).items()})

    def pipes(self) -> list[Connection]:
        """Where shards may say something."""
        return [s.pipe for s in self._shards if s.speaks]

    def begin(self, scenario: Scenario) -> None:
        """Arm its shards; requests count from now."""
        self._scenario, self._step = scenario, -1
        self._take_report()
        self._lost.clear()
        for strike in scenario.strikes:
            if strike.moment is not Moment.IDLE:
                self._shards[strike.shard].arm(strike)

    def before_step(self, step: int) -> None:
        """The engine is between two steps: kill the idle, continue the stopped."""
        self._hear()
        self._step = step
        for strike in self._scenario.strikes:
            shard = self._shards[strike.shard]
            if strike.moment is Moment.IDLE and strike.step == step:
                shard.struck_step = step
                shard.kill()
            if strike.signal is STOP and shard.struck_step is not None and not shard.was_stopped:
                shard.resume()

    def _hear(self) -> None:
        for shard in self._shards:
            shard.hear(self._step)

    def watch(self) -> None:
        """A step may be under way: a shard that recovers does so after the other's late answer."""
        self._hear()
        struck = [
            s for s in self._scenario.strikes if self._shards[s.shard].struck_step is not None
        ]
        for strike in struck:
            recovering = self._shards[strike.shard]
            if not strike.recovers or recovering.was_stopped:
                continue
            for other in struck:
                if not other.recovers:
                    self._shards[other.shard].resume()
            time.sleep(TRAVEL_S)
            recovering.resume()

    def finish(self) -> dict[str, Any]:
        """What became of the scenario; then every struck shard is replaced."""
        aftermath = Aftermath(self._version)
        strikes = self._scenario.strikes
        for strike in strikes:
            shard = self._shards[strike.shard]
            shard.hear(self._step)
            aftermath.names.append(shard.name)
            aftermath.struck_steps.append(shard.struck_step)
            aftermath.was_stopped.append(shard.was_stopped)
            may_end_s = PATIENCE_S if strike.signal is KILL else 0.0
            aftermath.exitcodes.append(shard.exitcode(may_end_s))
        self._await_losses(sum(not s.recovers for s in strikes))
        aftermath.lost = dict(self._lost)
        self._scenario = QUIET
        self._replace([s.shard for s in strikes])
        return asdict(aftermath)

    def _await_losses(self, count: int) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        self._take_report()
        while len(self._lost) < count and time.monotonic() < deadline_s:
            time.sleep(0.02)
            self._take_report()

    def _replace(self, places: list[int]) -> None:
        for place in places:
            self._shards[place].end()
            self._shards[place] = self._new_shard(place)
        self._publish()

    def close(self) -> None:
        """End every process and the desk."""
        for shard in self._shards:
            shard.end()
        self._desk.close()

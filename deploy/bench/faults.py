"""`bench faults`: real signals at real processes of a running application, under load.

The same prompts are asked undisturbed, twice, and then while something dies; what clients saw is
compared. `deploy.bench.shift` changes the load instead.
"""

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.bench.application import RunningApplication, send
from deploy.bench.faults_report import FaultReport, FaultResult, summarise
from deploy.bench.load import Stream, closed_loop
from deploy.bench.report import Circumstances, write_json
from deploy.bench.shift import Shift, shift_load
from deploy.progress import Progress
from services.messages import ControllerStatus

KILL, STOP, CONTROLLER, REBALANCE = "kill", "stop", "controller", "rebalance"
SCENARIOS = (KILL, STOP, CONTROLLER, REBALANCE)
STRIKE_AFTER_S = 1.5
STOPPED_S = 4.0
NOTICE_TIMEOUT_S = 30.0  # a lease, and some more
REPAIR_TIMEOUT_S = 300.0  # a new shard imports vLLM, on a busy machine


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """What is done."""

    scenarios: tuple[str, ...]
    clients: int
    requests: int
    max_tokens: int
    shift: Shift
    json_file: Path


class FaultRun:
    """One run; the file is written anew after every scenario."""

    def __init__(
        self,
        app: RunningApplication,
        options: FaultOptions,
        around: Circumstances,
        progress: Progress,
    ) -> None:
        self._app = app
        self._options = options
        self._progress = progress
        self._prompts = [f"Story {i}. Once upon a time" for i in range(options.requests)]
        status = app.status()
        self._shards, self._redundancy = len(status.shards), status.redundancy
        self._report = FaultReport(
            "faults",
            around,
            app.name,
            self._shards,
            self._redundancy,
            options.clients,
            is_complete=False,
            results=(),
        )

    def run(self) -> FaultReport:
        """Every scenario, one after the other. Raises EngineError if something stays broken."""
        calm, again = self._undisturbed("first"), self._undisturbed("second")
        self._add(summarise("undisturbed", again, calm))
        for scenario in self._options.scenarios:
            if scenario == REBALANCE:
                self._add(self._shift(calm))
            else:
                self._add(self._strike(scenario, calm))
        self._report = replace(self._report, is_complete=True)
        write_json(self._options.json_file, self._report)
        return self._report

    def _add(self, result: FaultResult) -> None:
        self._report = replace(self._report, results=(*self._report.results, result))
        write_json(self._options.json_file, self._report)

    def _strike(self, scenario: str, calm: Sequence[Stream]) -> FaultResult:
        self._app.wait_until(self._is_whole, REPAIR_TIMEOUT_S)
        victim = self._app.controller() if scenario == CONTROLLER else self._app.a_shard()

        async def strike() -> float:
            await asyncio.sleep(STRIKE_AFTER_S)
            send(victim, signal.SIGSTOP if scenario == STOP else signal.SIGKILL)
            struck_s = time.monotonic()
            try:
                seen_s = 0.0
                if scenario != CONTROLLER:  # whose successor may be whole before it is asked
                    seen_s = await asyncio.to_thread(self._until_damaged)
                if scenario == STOP:
                    await asyncio.sleep(STOPPED_S - seen_s)
            finally:
                if scenario == STOP:  # not before it was seen, or it is well before anybody looks
                    send(victim, signal.SIGCONT)
            await asyncio.to_thread(self._app.wait_until, self._is_whole, REPAIR_TIMEOUT_S)
            return time.monotonic() - struck_s

        async def both() -> tuple[list[Stream], float]:
            streams, whole_s = await asyncio.gather(self._load(), strike())
            return streams, whole_s

        with self._progress.step(f"{scenario}: {len(self._prompts)} requests"):
            streams, whole_s = asyncio.run(both())
        return summarise(scenario, streams, calm, whole_again_s=whole_s)

    def _until_damaged(self) -> float:
        """Seconds until the controller has seen the damage."""
        return self._app.wait_until(lambda s: not self._is_whole(s), NOTICE_TIMEOUT_S)

    def _is_whole(self, status: ControllerStatus | None) -> bool:
        if status is None:
            return False
        alive = [shard for shard in status.shards if shard.state != "suspected"]
        return (
            status.complete
            and status.redundancy >= self._redundancy
            and len(alive) >= self._shards
            and bool(status.readers)
        )

    async def _load(self) -> list[Stream]:
        return await closed_loop(
            self._app.url,
            model=self._app.model,
            prompts=self._prompts,
            clients=self._options.clients,
            max_tokens=self._options.max_tokens,
            requests=len(self._prompts),
        )

    def _undisturbed(self, which: str) -> list[Stream]:
        with self._progress.step(f"undisturbed, {which}: {len(self._prompts)} requests"):
            return asyncio.run(self._load())

    def _shift(self, calm: Sequence[Stream]) -> FaultResult:
        shift = self._options.shift
        with self._progress.step(
            f"{REBALANCE}: {shift.settle_s:.0f} s of one load and {shift.follow_s:.0f} s of another"
        ):
            seen = asyncio.run(shift_load(self._app, shift, self._prompts))
        result = summarise(REBALANCE, (*seen.streams, *seen.witness), calm)
        return replace(
            result,
            p99_ratio=seen.p99_ratio,
            whole_again_s=seen.within_s,
            imbalance_before=seen.imbalance_before,
            imbalance_after=seen.imbalance_after,
            imbalance_optimum=seen.imbalance_optimum,
        )

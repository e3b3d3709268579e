"""The controller's Serve deployment: hands reports to `router.control` and answers from it.

One replica; Serve restarts it. It keeps nothing on disk: what it must know is in the reports of
those that live. While it is away, traffic goes on with the last table.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np

from monitoring.snapshot import Snapshot
from router import planning
from router.choose import Policy
from router.control import ControlSettings, ControlState, Orders
from router.errors import CapacityError, EngineError
from router.members import ShardState
from router.placer import PlacerSettings
from router.planning import Placed, PlacementJob
from services.config import DeploymentConfig
from services.controller_metrics import ControllerMetrics
from services.gateways import Gateways
from services.lifecycle import end_with_parent
from services.logs import log_to_stderr
from services.messages import (
    AttentionOrders,
    AttentionReport,
    ControllerStatus,
    DecisionStatus,
    GatewayNews,
    GatewayReport,
    ShardReport,
    ShardStatus,
)
from services.scaler import EngineLoad, Scaler, engine_load
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)

REPLACEMENT_GRACE_S = 60.0  # Serve needs about half of this to bring up a new shard
TICK_S = 0.1
STEP_INTERVAL_S = 0.02  # many shards' reports are dealt with together


class Controller:
    """Plain class; `services.app` makes a deployment of it."""

    async def __init__(self, config: DeploymentConfig, keys: DataPlaneKeys) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready at once; tables come when shards have reported."""
        end_with_parent()
        log_to_stderr(config.logs)
        self._keys = keys
        self._interval_s = config.controller.report_interval_s
        self._reader_lease_s = 4 * config.controller.lease_s
        self._state = ControlState(control_settings(config))
        self._metrics = ControllerMetrics(
            half_life_s=config.controller.load_half_life_s,
            silent_s=config.controller.lease_s,
            now_s=time.monotonic(),
        )
        self._scaler = Scaler(config)
        self._engines: dict[str, EngineLoad] = {}  # by attention replica
        self._reports: dict[str, ShardReport] = {}
        self._heard_s: dict[str, float] = {}  # attention replica → its last report
        self._ready: set[str] = set()  # attention replicas whose engine takes requests
        self._gateways = Gateways(config.controller.lease_s)
        self._is_closing = False
        self._changed = asyncio.Condition()
        self._announced = 0
        self._placing: asyncio.Task[Placed] | None = None
        self._asked: asyncio.Future[DecisionStatus] | None = None
        self._ticking = asyncio.create_task(self._tick_forever(), name="tick")

    async def keys(self) -> DataPlaneKeys:
        """The data plane's keys, for shards and attention replicas of this deployment."""
        return self._keys

    async def report_shard(self, report: ShardReport) -> Orders:
        """A shard says what it holds; the answer is what it should do."""
        self._reports[report.address.shard_id] = report
        self._metrics.add(report.account, time.monotonic())
        orders = self._state.on_shard(
            report.address,
            n_experts=report.n_experts,
            held=report.held,
            loading=report.loading,
            now_s=time.monotonic(),
            is_leaving=report.is_leaving,
        )
        await self._announce()
        return replace(
            orders, wanted_shards=self._scaler.wanted_shards, is_settled=not self._state.waiting_for
        )

    async def report_attention(self, report: AttentionReport) -> AttentionOrders:
        """A replica says what it saw; the answer, within an interval, has a newer table if any."""
        now_s = time.monotonic()
        self._engines[report.replica_id] = engine_load(report.account)
        self._heard_s[report.replica_id] = now_s
        if report.is_ready:
            self._ready.add(report.replica_id)
        routed = self._metrics.add(report.account, now_s)
        self._state.on_reader(
            report.replica_id,
            report.table_version,
            report.lost,
            now_s=now_s,
            wrong=report.wrong,
            expert_rows=routed,
        )
        await self._announce()
        async with self._changed:
            if self._version() <= report.table_version:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), self._interval_s)
        newer = self._version() > report.table_version
        table, lost = self._state.table if newer else None, self._gateways.lost(time.monotonic())
        return AttentionOrders(table, self._scaler.wanted_replicas, lost)

    async def hear_gateway(self, report: GatewayReport) -> GatewayNews:
        """A gateway says what went through it; the answer is what it should know."""
        now_s = time.monotonic()
        self._gateways.hear(report, now_s)
        self._metrics.add(report.account, now_s)
        return GatewayNews(
            problem=self._problem(),
            engines=len(self._ready),
            gateways=self._gateways.count,
            others=self._gateways.others_than(report.gateway_id),
            is_closing=self._is_closing,
        )

    async def close(self) -> int:
        """Have the gateways refuse new requests; returns how many are still open. Ask again."""
        self._is_closing = True
        return self._gateways.open_requests

    async def metrics(self) -> Snapshot:
        """All figures, for `/metrics` and the live page."""
        shards = self._state.members.shards.values()
        told = [(self._reports[s.address.shard_id], self._shard_status(s)) for s in shards]
        return self._metrics.snapshot(self._state, told, time.monotonic())

    async def rebalance(self) -> DecisionStatus:
        """Place anew by the present loads, whatever the interval and the cost of moves.

        Waits for moves that are under way. Raises CapacityError if nothing can be placed now.
        """
        problem = self._state.waiting_for
        if problem:
            raise CapacityError(f"no rebalance now: {problem}. Try again when that is over.")
        self._state.placer.ask()
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._asked)

    async def status(self) -> ControllerStatus:
        """What is known now."""
        state, now_s = self._state, time.monotonic()
        table = state.table
        return ControllerStatus(
            table_version=self._version(),
            complete=table is not None and table.is_complete,
            redundancy=table.redundancy() if table is not None else 0,
            waiting_for=state.waiting_for,
            shards=tuple(self._shard_status(s) for _, s in sorted(state.members.shards.items())),
            readers=dict(state.readers),
            imbalance=state.imbalance(now_s),
            moves_left=state.placer.moves_left,
            last_decision=self._last_decision(now_s),
            scaling=self._scaler.said,
        )

    async def check_health(self) -> None:
        """Serve restarts the controller when this raises."""
        if self._ticking.done():
            raise EngineError(f"the controller's clock stopped: {self._ticking.exception()!r}")

    async def _tick_forever(self) -> None:
        while True:
            now_s = time.monotonic()
            self._forget_silent(now_s)
            self._state.step(now_s)
            self._metrics.tick(self._state, now_s)
            self._scale(now_s)
            cost = planning.move_cost(r.pace for r in self._reports.values())
            job = self._state.placement_due(now_s, move_cost_rows=cost)
            if job is not None:
                self._placing = asyncio.create_task(self._place(job), name="place")
            if self._placing is not None and self._placing.done():
                self._placing.result()  # a placement that failed ends the controller
            await self._announce()
            await asyncio.sleep(TICK_S)

    def _scale(self, now_s: float) -> None:
        if self._state.waiting_for:  # what is measured while something is missing says nothing
            return
        staying = self._state.members.staying()
        paces = {s: self._reports[s].pace for s in staying if s in self._reports}
        self._scaler.look(paces, self._engines, self._gateways.waiting, now_s)
        if self._scaler.wanted_shards:
            self._state.placer.expected = self._scaler.wanted_shards

    async def _place(self, job: PlacementJob) -> Placed:
        """In a thread, since it takes seconds for large pools."""
        placed = await asyncio.to_thread(planning.run, job)
        self._state.on_placed(placed, time.monotonic())
        self._metrics.placed(placed)
        if job.cause == planning.ASKED and self._asked is not None:
            decision = self._last_decision(time.monotonic())
            if self._state.placer.last is placed and decision is not None:
                self._asked.set_result(decision)
                self._asked = None
            else:  # shards came or went meanwhile
                self._state.placer.ask()
        return placed

    def _forget_silent(self, now_s: float) -> None:
        for replica_id in [r for r, s in self._heard_s.items() if now_s - s > self._reader_lease_s]:
            del self._heard_s[replica_id]
            self._engines.pop(replica_id, None)
            self._state.forget_reader(replica_id)
            self._ready.discard(replica_id)
        for shard_id in [s for s in self._reports if s not in self._state.members.shards]:
            del self._reports[shard_id]

    def _last_decision(self, now_s: float) -> DecisionStatus | None:
        placer = self._state.placer
        if placer.last is None:
            return None
        decision = placer.last.decision
        return DecisionStatus(
            age_s=now_s - placer.last_s,
            cause=placer.last.job.cause,
            accepted=decision.accepted,
            reason=decision.reason,
            moves=decision.n_moves,
            imbalance_before=decision.imbalance_before,
            imbalance_after=decision.imbalance_after,
        )

    def _shard_status(self, shard: ShardState) -> ShardStatus:
        report = self._reports[shard.address.shard_id]
        used = int(np.count_nonzero(shard.held >= 0))
        state = "serving" if used else "empty"
        if shard.loading:
            state = "loading"
        if shard.is_leaving:
            state = "leaving"
        if shard.suspected_s is not None:
            state = "suspected"
        return ShardStatus(
            shard_id=shard.address.shard_id,
            host=shard.address.host,
            state=state,
            slots_used=used,
            slots_total=int(shard.held.size),
            loading=len(shard.loading),
            held=tuple(tuple(int(e) for e in layer if e >= 0) for layer in shard.held),
            rows=report.pace.rows,
            resident_bytes=report.resident_bytes,
            weight_bytes=report.weight_bytes,
            read_bytes=report.read_bytes,
            problem=report.problem,
        )

    def _problem(self) -> str:
        """Why no request can be answered now; a table that was complete once is repaired soon."""
        if self._state.table is None:
            return self._state.waiting_for or "experts are being placed"
        return "" if self._ready else "no engine is up"

    def _version(self) -> int:
        return self._state.table.version if self._state.table is not None else 0

    async def _announce(self) -> None:
        if self._version() != self._announced:
            self._announced = self._version()
            async with self._changed:
                self._changed.notify_all()


def control_settings(config: DeploymentConfig) -> ControlSettings:
    """What the decisions need of the configuration."""
    control = config.controller
    placer = PlacerSettings(
        shards=config.pool.shards,
        redundancy=config.pool.redundancy,
        settle_s=4 * control.report_interval_s,
        replacement_grace_s=REPLACEMENT_GRACE_S,
        policy=Policy(config.router.policy),
        rebalance_interval_s=control.rebalance_interval_s,
        load_half_life_s=control.load_half_life_s,
        payback_s=control.rebalance_payback_s,
    )
    return ControlSettings(placer, control.lease_s, STEP_INTERVAL_S)

"""The controller's Serve deployment: hands reports to `router.control` and answers from it.

One replica; Serve restarts it. It keeps nothing on disk: what it must know is in the reports of
those that live. While it is away, traffic goes on with the last table.
"""

import asyncio
import logging
import time

import numpy as np

from router.control import ControlSettings, ControlState, ShardState
from router.moves import LoadExpert
from router.table import ReplicaTable
from services.config import DeploymentConfig
from services.lifecycle import end_with_parent
from services.logs import log_to_stderr
from services.messages import AttentionReport, ControllerStatus, ShardReport, ShardStatus
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)

REPLACEMENT_GRACE_S = 60.0  # Serve needs about half of this to bring up a new shard


class Controller:
    """Plain class; `services.app` makes a deployment of it."""

    def __init__(self, config: DeploymentConfig, keys: DataPlaneKeys) -> None:
        end_with_parent()
        log_to_stderr()
        control = config.controller
        self._keys = keys
        self._interval_s = control.report_interval_s
        self._reader_lease_s = 4 * control.lease_s
        self._state = ControlState(
            ControlSettings(
                shards=config.pool.shards,
                redundancy=config.pool.redundancy,
                lease_s=control.lease_s,
                settle_s=4 * control.report_interval_s,
                replacement_grace_s=REPLACEMENT_GRACE_S,
            )
        )
        self._reports: dict[str, ShardReport] = {}
        self._heard_s: dict[str, float] = {}  # attention replica → its last report
        self._changed = asyncio.Condition()

    async def keys(self) -> DataPlaneKeys:
        """The data plane's keys, for shards and attention replicas of this deployment."""
        return self._keys

    async def report_shard(self, report: ShardReport) -> tuple[LoadExpert, ...]:
        """A shard says what it holds; the answer is what it should load."""
        self._reports[report.address.shard_id] = report
        version = self._version()
        orders = self._state.on_shard(
            report.address,
            n_experts=report.n_experts,
            held=report.held,
            loading=report.loading,
            now_s=time.monotonic(),
        )
        await self._announce(version)
        return orders

    async def report_attention(self, report: AttentionReport) -> ReplicaTable | None:
        """A replica says what it saw; the answer, within an interval, is a newer table if any."""
        now_s = time.monotonic()
        self._heard_s[report.replica_id] = now_s
        for replica_id in [r for r, s in self._heard_s.items() if now_s - s > self._reader_lease_s]:
            del self._heard_s[replica_id]
            self._state.forget_reader(replica_id)
        version = self._version()
        self._state.on_reader(report.replica_id, report.table_version, report.lost, now_s=now_s)
        await self._announce(version)
        async with self._changed:
            if self._version() <= report.table_version:
                try:
                    await asyncio.wait_for(self._changed.wait(), self._interval_s)
                except TimeoutError:
                    return None
        newer = self._version() > report.table_version
        return self._state.table if newer else None

    async def status(self) -> ControllerStatus:
        """What is known now."""
        state = self._state
        state.step(time.monotonic())
        table = state.table
        return ControllerStatus(
            table_version=self._version(),
            complete=table is not None and table.is_complete,
            redundancy=table.redundancy() if table is not None else 0,
            waiting_for=state.waiting_for,
            shards=tuple(self._shard_status(s) for _, s in sorted(state.shards.items())),
            readers=dict(state.readers),
        )

    def _shard_status(self, shard: ShardState) -> ShardStatus:
        report = self._reports[shard.address.shard_id]
        used = int(np.count_nonzero(shard.held >= 0))
        state = "serving" if used else "empty"
        if shard.loading:
            state = "loading"
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
            rows=report.rows,
            resident_bytes=report.resident_bytes,
            weight_bytes=report.weight_bytes,
            read_bytes=report.read_bytes,
            problem=report.problem,
        )

    def _version(self) -> int:
        return self._state.table.version if self._state.table is not None else 0

    async def _announce(self, version_before: int) -> None:
        if self._version() != version_before:
            async with self._changed:
                self._changed.notify_all()

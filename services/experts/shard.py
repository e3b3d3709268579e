"""The pool's Serve deployment: each Serve replica is one shard.

It says what it holds to the controller, over and over, and loads what it is told in answer.
Rows do not come through Ray: they reach the worker's port.
"""

import asyncio
import logging
import os
import time

import psutil

from router.errors import ConfigError, ShardError
from router.moves import LoadExpert
from router.planning import ShardPace
from router.table import ShardId
from services import autoscaling
from services.cluster import (
    ControllerClient,
    check_checkpoint_here,
    is_ending,
    node_name,
    replica_name,
    tcp_host,
)
from services.config import DeploymentConfig
from services.experts.account import shard_account
from services.experts.worker import ShardWorker
from services.forking import is_forked
from services.lifecycle import end_with_parent
from services.logs import log_to_stderr
from services.messages import ShardReport
from services.paths import run_dir
from services.tracing import start_tracing
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)

REST_POLL_S = 0.05
ANSWER_S = 0.2  # for rows that are still here when nobody sends any more


class ExpertShard:
    """One shard. Plain class; `services.app` makes a deployment of it."""

    async def __init__(self, config: DeploymentConfig, app: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready when it can take orders; experts come afterwards."""
        if not is_forked:
            end_with_parent()
        log_to_stderr(config.logs)
        self._config = config
        self._began_s = time.monotonic()
        self._shard_id = ShardId(f"{os.getpid()}-{replica_name()}")
        self._app, self._controller = app, ControllerClient(app)
        self._loading: dict[LoadExpert, None] = {}
        self._has_orders = asyncio.Event()
        self._problem = ""
        self._expelled = ""
        self._rest_ratio = 0.0
        self._wanted_shards = 0
        self._is_leaving = self._may_leave = self._is_settled = False
        self._heard_s = time.monotonic()
        self._tracing = start_tracing(config.tracing, "shard")
        keys = await self._controller.keys()
        self._worker = await asyncio.to_thread(self._build_worker, keys)
        self._worker.start()
        self._tasks = [
            asyncio.create_task(self._report_forever(), name="report"),
            asyncio.create_task(self._load_forever(), name="load"),
        ]

    def _build_worker(self, keys: DataPlaneKeys) -> ShardWorker:
        from services.experts.engine import shard_vllm_config
        from services.experts.vllm_kernel import VllmKernel
        from services.transport.sockets import SocketPort

        config = self._config
        check_checkpoint_here(config.model.folder)
        slots = config.pool.slots_per_layer
        if slots is None:
            raise ConfigError("pool.slots_per_layer was not worked out before the start")
        engine = shard_vllm_config(
            str(config.model.folder),
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
        )
        kernel = VllmKernel(engine, slots)
        port = SocketPort(
            self._shard_id,
            host=node_name(),
            run_dir=run_dir(config),
            tcp_host=tcp_host(config),
            keys=keys,
        )
        self._n_experts = kernel.n_experts
        self._kernel = kernel
        threads = config.pool.threads or 1
        return ShardWorker(kernel, port, threads=threads, tracing=self._tracing)

    async def _report_forever(self) -> None:
        while not self._may_leave:
            try:
                orders = await self._controller.report_shard(self._report())
                for order in orders.loads:
                    self._loading.setdefault(order)
                    self._has_orders.set()
                self._rest_ratio = orders.rest_ratio
                self._expelled = orders.expelled
                self._wanted_shards, self._may_leave = orders.wanted_shards, orders.may_leave
                self._is_settled = orders.is_settled
                self._heard_s = time.monotonic()
            except Exception as error:  # the controller may be away; rows are served all the same
                log.warning("report failed: %s", error)
                self._is_settled = False
            await self._until_something_is_to_tell()

    async def _until_something_is_to_tell(self) -> None:
        """One interval; several while nothing happens: a call through Serve takes 20 ms of CPU."""
        control, before = self._config.controller, self._worker.stats
        for _ in range(control.quiet_intervals):
            await asyncio.sleep(control.report_interval_s)
            is_quiet = self._is_settled and not (self._loading or self._is_leaving)
            if not is_quiet or self._worker.stats is not before:
                return

    def _report(self) -> ShardReport:
        stats, held = self._worker.stats, self._worker.held()
        return ShardReport(
            address=self._worker.address,
            n_experts=self._n_experts,
            held=held,
            loading=tuple(self._loading),
            problem=self._problem,
            pace=ShardPace(
                stats.rows, stats.computed_s, stats.loaded, stats.load_s, stats.queued_s
            ),
            resident_bytes=psutil.Process().memory_info().rss,
            weight_bytes=self._kernel.weight_bytes(),
            read_bytes=stats.read_bytes,
            account=shard_account(
                self._shard_id,
                time.monotonic() - self._began_s,
                stats,
                self._worker.layer_rows,
                held,
            ),
            is_leaving=self._is_leaving,
        )

    async def _load_forever(self) -> None:
        while True:
            await self._has_orders.wait()
            orders = self._next_orders()
            before, started_s = self._worker.stats.rows, time.monotonic()
            try:
                experts = {o.slot: o.expert for o in orders}
                await asyncio.to_thread(self._worker.load, orders[0].layer, experts)
                self._problem = ""
            except ShardError as error:
                self._problem = str(error)
                log.error("load failed: layer=%s %s", orders[0].layer, error)
                await asyncio.sleep(self._config.controller.report_interval_s)
            for order in orders:
                del self._loading[order]
            if not self._loading:
                self._has_orders.clear()
            if self._worker.stats.rows > before:  # it served meanwhile: rows go first
                await self._rest(time.monotonic() - started_s)

    async def _rest(self, worked_s: float) -> None:
        """Leave the processor to the rows; orders that have become urgent end it."""
        rested_s = 0.0
        while rested_s < worked_s * self._rest_ratio:
            await asyncio.sleep(REST_POLL_S)
            rested_s += REST_POLL_S

    def _next_orders(self) -> list[LoadExpert]:
        """What to load now: a layer that holds nothing at once, else one expert."""
        first = next(iter(self._loading))
        if (self._worker.held()[first.layer] >= 0).any():
            return [first]
        return [order for order in self._loading if order.layer == first.layer]

    async def check_health(self) -> None:
        """Serve restarts the shard when this raises."""
        if self._expelled:
            raise ShardError(f"the controller sent this shard away: {self._expelled}")
        if self._worker.error is not None:
            raise ShardError(f"the worker thread died: {self._worker.error!r}")
        for task in self._tasks:
            if task.done():
                raise ShardError(f"task {task.get_name()} ended: {task.exception()!r}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve: how many shards there should be."""
        return autoscaling.told(self._wanted_shards)

    async def __del__(self) -> None:
        """Serve's word to stop, and Python's; serves on until others have what is held here.

        Without autoscaling nobody takes its place: the application ends, or a new shard comes.
        """
        if not hasattr(self, "_tasks"):
            return
        if self._config.pool.autoscaling is not None:
            self._is_leaving = True
            while not (self._may_leave or await self._is_alone()):
                await asyncio.sleep(ANSWER_S)
            await asyncio.sleep(ANSWER_S)
        self._worker.stop()
        await asyncio.to_thread(self._tracing.close)

    async def _is_alone(self) -> bool:
        """Whether the controller is away for good; one that died comes back within seconds."""
        if time.monotonic() - self._heard_s < 2 * self._config.controller.report_interval_s:
            return False
        return await asyncio.to_thread(is_ending, self._app)

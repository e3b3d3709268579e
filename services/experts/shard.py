"""The pool's Serve deployment: each Serve replica is one shard.

It says what it holds to the controller, over and over, and loads what it is told in answer.
Rows do not come through Ray: they reach the worker's port.
"""

import asyncio
import logging
import os

import psutil

from router.errors import ConfigError, ShardError
from router.moves import LoadExpert
from router.table import ShardId
from services.cluster import ControllerClient, node_ip, node_name, replica_name
from services.config import DeploymentConfig
from services.experts.worker import ShardWorker
from services.lifecycle import end_with_parent
from services.logs import log_to_stderr
from services.messages import ShardReport
from services.paths import run_dir
from services.transport.keys import DataPlaneKeys

log = logging.getLogger(__name__)


class ExpertShard:
    """One shard. Plain class; `services.app` makes a deployment of it."""

    async def __init__(self, config: DeploymentConfig, app: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """Ready when it can take orders; experts come afterwards."""
        end_with_parent()
        log_to_stderr()
        self._config = config
        self._shard_id = ShardId(f"{os.getpid()}-{replica_name()}")
        self._controller = ControllerClient(app)
        self._loading: dict[LoadExpert, None] = {}
        self._problem = ""
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
        from services.transport.zeromq import ZmqPort

        config = self._config
        slots = config.pool.slots_per_layer
        if slots is None:
            raise ConfigError("pool.slots_per_layer was not worked out before the start")
        engine = shard_vllm_config(
            str(config.model.folder),
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
        )
        kernel = VllmKernel(engine, slots)
        uses_tcp = config.transport.mode == "tcp" or (
            config.transport.mode == "auto" and not node_ip().startswith("127.")
        )
        port = ZmqPort(
            self._shard_id,
            host=node_name(),
            run_dir=run_dir(config),
            tcp_host=node_ip() if uses_tcp else "",
            keys=keys,
        )
        self._n_experts = kernel.n_experts
        self._kernel = kernel
        return ShardWorker(kernel, port, threads=config.pool.threads or 1)

    async def _report_forever(self) -> None:
        while True:
            try:
                orders = await self._controller.report_shard(self._report())
                for order in orders:
                    self._loading.setdefault(order)
            except Exception as error:  # the controller may be away; rows are served all the same
                log.warning("report failed: %s", error)
            await asyncio.sleep(self._config.controller.report_interval_s)

    def _report(self) -> ShardReport:
        stats = self._worker.stats
        return ShardReport(
            address=self._worker.address,
            n_experts=self._n_experts,
            held=self._worker.held(),
            loading=tuple(self._loading),
            problem=self._problem,
            rows=stats.rows,
            busy_s=stats.computed_s,
            resident_bytes=psutil.Process().memory_info().rss,
            weight_bytes=self._kernel.weight_bytes(),
            read_bytes=stats.read_bytes,
        )

    async def _load_forever(self) -> None:
        while True:
            if not self._loading:
                await asyncio.sleep(0.05)
                continue
            layer = next(iter(self._loading)).layer
            orders = [o for o in self._loading if o.layer == layer]
            try:
                experts = {o.slot: o.expert for o in orders}
                await asyncio.to_thread(self._worker.load, layer, experts)
                self._problem = ""
            except ShardError as error:
                self._problem = str(error)
                log.error("load failed: layer=%s %s", layer, error)
                await asyncio.sleep(self._config.controller.report_interval_s)
            for order in orders:
                del self._loading[order]

    async def check_health(self) -> None:
        """Serve restarts the shard when this raises."""
        if self._worker.error is not None:
            raise ShardError(f"the worker thread died: {self._worker.error!r}")
        for task in self._tasks:
            if task.done():
                raise ShardError(f"task {task.get_name()} ended: {task.exception()!r}")

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop()

"""A real pool of shard processes without Ray, for tests that drive vLLM's engine offline."""

import asyncio
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from router.choose import Policy
from router.table import ReplicaTable, ShardAddress, ShardId, build_table
from services.attention.feed import TableDesk, WorkerReport
from services.attention.plugin import LOAD_FORMAT
from services.attention.settings import RemoteSettings

Layout = Mapping[int, Mapping[int, int]]
"""What one shard holds: layer → slot → expert."""


def spread(
    n_layers: int, n_experts: int, n_shards: int, *, redundancy: int = 1, shift: int = 0
) -> list[Layout]:
    """A simple placement: replica r of expert e on shard (e + r + shift * layer) mod n_shards."""
    layouts: list[dict[int, dict[int, int]]] = [{} for _ in range(n_shards)]
    for layer in range(n_layers):
        for expert in range(n_experts):
            for replica in range(redundancy):
                slots = layouts[(expert + replica + shift * (layer + 1)) % n_shards]
                held = slots.setdefault(layer, {})
                held[len(held)] = expert
    return layouts


def _shard_main(
    pipe: Connection, model: str, dtype: str, n_slots: int, name: str, run_dir: str
) -> None:
    from services.experts.engine import shard_vllm_config
    from services.experts.vllm_kernel import VllmKernel
    from services.experts.worker import ShardWorker
    from services.transport.zeromq import ZmqPort

    kernel = VllmKernel(shard_vllm_config(model, dtype=dtype), n_slots)
    port = ZmqPort(ShardId(name), host="test", run_dir=Path(run_dir))
    worker = ShardWorker(kernel, port, threads=1)
    worker.start()
    pipe.send((port.address, kernel.n_layers, kernel.n_experts))
    while True:
        order, value = pipe.recv()
        if order == "stop":
            worker.stop()
            return
        if order == "load":
            for layer, experts in value.items():
                worker.load(layer, dict(experts))
        pipe.send((worker.held(), worker.stats, kernel.weight_bytes()))


@dataclass
class Shard:
    """One shard process."""

    process: Any
    pipe: Connection
    address: ShardAddress
    layout: Layout

    def call(self, order: str, value: Any = None) -> Any:
        self.pipe.send((order, value))
        return self.pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@dataclass
class LocalPool:
    """Shards as processes, and the desk an attention worker joins. Use as a context manager."""

    model: Path
    layouts: Sequence[Layout]
    dtype: str = "float32"
    shards: list[Shard] = field(default_factory=list)
    version: int = 0
    n_layers: int = 0
    n_experts: int = 0
    reports: list[WorkerReport] = field(default_factory=list)

    def __enter__(self) -> "LocalPool":
        self._folder = tempfile.TemporaryDirectory(prefix="exm-")
        context = multiprocessing.get_context("spawn")
        for index, layout in enumerate(self.layouts):
            ours, theirs = context.Pipe()
            n_slots = max(len(slots) for slots in layout.values())
            arguments = (
                theirs,
                str(self.model),
                self.dtype,
                n_slots,
                f"shard-{index}",
                self._folder.name,
            )
            process = context.Process(target=_shard_main, args=arguments, daemon=True)
            process.start()
            self.shards.append(Shard(process, ours, ShardAddress(ShardId("?"), ""), layout))
        for shard in self.shards:
            if not shard.pipe.poll(120):
                raise TimeoutError("a shard process did not start within 120 s")
            shard.address, self.n_layers, self.n_experts = shard.pipe.recv()
        for shard in self.shards:
            shard.pipe.send(("load", shard.layout))
        for shard in self.shards:
            shard.pipe.recv()
        self._start_desk()
        self.publish(self.table())
        return self

    def table(self, *, without: Sequence[int] = ()) -> ReplicaTable:
        """The next version, of what the shards hold."""
        self.version += 1
        holdings = [
            (s.address, {layer: list(slots.values()) for layer, slots in s.layout.items()})
            for i, s in enumerate(self.shards)
            if i not in without
        ]
        return build_table(self.version, holdings, n_layers=self.n_layers, n_experts=self.n_experts)

    def publish(self, table: ReplicaTable) -> None:
        """Hand a table to the attention worker."""
        asyncio.run_coroutine_threadsafe(self._desk.publish(table), self._loop).result()

    def engine_args(self, **settings: Any) -> dict[str, Any]:
        """What turns a vLLM engine into this pool's attention side."""
        remote = RemoteSettings(
            feed=self._endpoint,
            host="test",
            **{
                "reply_timeout_s": 5.0,
                "lost_expert_deadline_s": 60.0,
                "policy": Policy.LEAST_TOKENS,
                **settings,
            },
        )
        return {"load_format": LOAD_FORMAT, "additional_config": remote.to_additional_config()}

    def _start_desk(self) -> None:
        self._endpoint = f"ipc://{self._folder.name}/feed"
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def main() -> None:
            self._desk = TableDesk(self._endpoint, None)
            ready.set()
            await self._desk.serve()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._task = self._loop.create_task(main())
            try:
                self._loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                self._desk.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        ready.wait()

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(5)
        for shard in self.shards:
            if shard.process.is_alive():
                shard.signal(signal.SIGCONT)
                shard.process.kill()
            shard.process.join(10)
        time.sleep(0)
        self._folder.cleanup()

"""A pool without Ray: one process with many shards, each with a real kernel and a real socket.

It holds several layouts of the same checkpoint at once; the table that is published says which
of them an attention engine meets. `pool_process` is how a test speaks to it.
"""

import asyncio
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from router.choose import Policy
from router.table import Holdings, ReplicaTable, ShardId, build_table
from services.attention.feed import TableDesk
from services.attention.plugin import LOAD_FORMAT
from services.attention.settings import RemoteSettings
from services.experts.worker import ShardWorker


@dataclass(frozen=True)
class Layout:
    """Which shards hold which experts: shard name → layer → experts."""

    name: str
    shards: dict[str, dict[int, list[int]]]


def spread(
    name: str, *, n_layers: int, n_experts: int, n_shards: int, redundancy: int = 1, shift: int = 0
) -> Layout:
    """Replica r of expert e lies on shard (e + r + shift * layer) mod n_shards."""
    shards: dict[str, dict[int, list[int]]] = {}
    for layer in range(n_layers):
        for expert in range(n_experts):
            for replica in range(redundancy):
                index = (expert + replica + shift * layer) % n_shards
                shards.setdefault(f"{name}-{index}", {}).setdefault(layer, []).append(expert)
    return Layout(name, shards)


def layouts(n_layers: int, n_experts: int) -> list[Layout]:
    """1, 2 and 4 shards, two placements on 2, and 4 shards with every expert twice."""
    size = {"n_layers": n_layers, "n_experts": n_experts}
    return [
        spread("one", **size, n_shards=1),
        spread("two", **size, n_shards=2),
        spread("two-shifted", **size, n_shards=2, shift=1),
        spread("four", **size, n_shards=4),
        spread("four-twice", **size, n_shards=4, redundancy=2, shift=1),
    ]


class Desk:
    """A `TableDesk` in a thread."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        async def main() -> None:
            self._desk = TableDesk(self.endpoint, None)
            self._task = asyncio.current_task()
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            try:
                await self._desk.serve()
            except asyncio.CancelledError:
                self._desk.close()

        asyncio.run(main())

    def publish(self, table: ReplicaTable) -> None:
        asyncio.run_coroutine_threadsafe(self._desk.publish(table), self._loop).result()

    def close(self) -> None:
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(5)

    def engine_args(self, **settings: Any) -> dict[str, Any]:
        """What turns a vLLM engine into an attention side that joins here."""
        chosen = {
            "reply_timeout_s": 30.0,
            "give_up_s": 60.0,
            "policy": Policy.LEAST_TOKENS,
            **settings,
        }
        remote = RemoteSettings(feed=self.endpoint, host="test", **chosen)
        return {"load_format": LOAD_FORMAT, "additional_config": remote.to_additional_config()}


class OneAtATime:
    """A kernel that waits for the others of its process: vLLM's share one scratch memory."""

    lock = threading.Lock()

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def run(self, *arguments: Any) -> Any:
        with self.lock:
            return self._kernel.run(*arguments)


class ShardThreads:
    """The shards of several layouts and the desk that hands out their tables."""

    def __init__(self, model: Path, dtype: str, run_dir: Path) -> None:
        self._model, self._dtype = model, dtype
        self._run_dir = run_dir
        self._version = 0
        self._layouts: Sequence[Layout] = ()
        self._workers: dict[str, ShardWorker] = {}
        self._kernels: dict[str, Any] = {}
        self._desk = Desk(f"ipc://{run_dir}/feed")
        probe = self._kernel(1)
        self.n_layers, self.n_experts = probe.n_layers, probe.n_experts

    def _kernel(self, n_slots: int) -> Any:
        from services.experts.engine import shard_vllm_config
        from services.experts.vllm_kernel import VllmKernel

        config = shard_vllm_config(str(self._model), dtype=self._dtype)
        return OneAtATime(VllmKernel(config, n_slots))

    def hold(self) -> None:
        """Start the shards of every layout and load what each holds."""
        from services.transport.sockets import SocketPort

        self._layouts = layouts(self.n_layers, self.n_experts)
        shards = [item for layout in self._layouts for item in layout.shards.items()]
        for name, held in shards:
            kernel = self._kernel(max(len(e) for e in held.values()))
            port = SocketPort(ShardId(name), host="test", run_dir=self._run_dir)
            worker = ShardWorker(kernel, port, threads=1)
            worker.start()
            for layer, experts in held.items():
                worker.load(layer, dict(enumerate(experts)))
            self._workers[name], self._kernels[name] = worker, kernel

    def table(self, index: int) -> ReplicaTable:
        """The next version of the table, offering one layout."""
        self._version += 1
        holdings: list[tuple[Any, Holdings]] = [
            (self._workers[name].address, held)
            for name, held in self._layouts[index].shards.items()
        ]
        return build_table(
            self._version, holdings, n_layers=self.n_layers, n_experts=self.n_experts
        )

    def publish(self, index: int) -> None:
        """Offer a layout; the engine adopts it before its next step."""
        self._desk.publish(self.table(index))

    def engine_args(self) -> dict[str, Any]:
        """See `Desk.engine_args`."""
        return self._desk.engine_args(half_batch_tokens=10**9, threads=1, prompt_threads=2)

    def swap_experts(self, index: int, one: int, other: int) -> None:
        """Spoil a layout: in every layer each expert answers in place of the other."""
        for name in self._layouts[index].shards:
            slot_of = self._workers[name]._slot_of
            slot_of[:, [one, other]] = slot_of[:, [other, one]]

    def shard_facts(self) -> list[dict[str, Any]]:
        """Name, experts held, weight bytes and bytes read of every shard."""
        return [
            {
                "name": name,
                "experts": int((worker.held() >= 0).sum()),
                "weight_bytes": self._kernels[name].weight_bytes(),
                "read_bytes": worker.stats.read_bytes,
            }
            for name, worker in self._workers.items()
        ]

    def rows_that_differ_by_threads(self) -> int:
        """Rows of a kernel's whose bits are others with 2 or 3 threads than with one."""
        kernel, generator = self._kernels["one-0"], torch.Generator().manual_seed(1)
        model, before, differing = kernel._config.model_config, torch.get_num_threads(), 0
        for n_rows in (1, 7, 64, 600):
            rows = torch.randn(n_rows, model.get_hidden_size(), generator=generator).to(model.dtype)
            slots = torch.randint(self.n_experts, (n_rows,), generator=generator).int()
            outs = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                outs.append(kernel.run(0, rows, slots).clone())
            differing += sum(int((out != outs[0]).any(1).sum()) for out in outs[1:])
        torch.set_num_threads(before)
        return differing

    def close(self) -> None:
        """End every thread."""
        for worker in self._workers.values():
            worker.stop()
        self._desk.close()


def bytes_in_log(log: str) -> tuple[int, int]:
    """(read, skipped) as the attention loader logged them."""
    found = re.search(r"read_bytes=(\d+) skipped_expert_bytes=(\d+)", log)
    assert found is not None, "the attention loader logged no bytes"
    return int(found.group(1)), int(found.group(2))

"""A shard without Ray: one thread that gathers rows, computes them and answers.

Everything that waits for a layer, from every attention replica, goes through the kernel in one
call. The thread also installs experts that were read elsewhere, between two batches. It keeps
no state of any request.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from router.errors import ShardError
from router.table import ShardAddress
from services.experts.kernel import ExpertKernel, LoadedSlots
from services.lifecycle import give_back_memory
from services.transport.base import Delivery, RowPort, RowsAnswer, RowsRefusal, RowsRequest

log = logging.getLogger(__name__)

IDLE_POLL_S = 0.05  # how soon an idle shard notices an install or a stop


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Totals since the start."""

    rows: int = 0
    batches: int = 0
    computed_s: float = 0.0
    read_bytes: int = 0


class ShardWorker:
    """Slots, rows and answers of one shard."""

    def __init__(self, kernel: ExpertKernel, port: RowPort, *, threads: int) -> None:
        """threads: CPU threads of the kernel."""
        self._kernel = kernel
        self._port = port
        self._threads = threads
        self._held = np.full((kernel.n_layers, kernel.n_slots), -1, np.int32)
        self._slot_of = np.full((kernel.n_layers, kernel.n_experts), -1, np.int32)
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.stats = WorkerStats()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shard-worker", daemon=True)

    @property
    def address(self) -> ShardAddress:
        """Where rows are taken."""
        return self._port.address

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch under way and stop."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def held(self) -> NDArray[np.int32]:
        """[L, S] the expert in each slot that can be used now, -1 for none."""
        return self._held.copy()

    def load(self, layer: int, experts: dict[int, int]) -> None:
        """Read experts into slots (slot → expert) while serving goes on; returns when usable.

        What the slots held is not served from the start of the call. Raises ShardError.
        """
        self._in_worker(lambda: self._forget(layer, experts))
        self._read(layer, experts)
        give_back_memory()  # packing leaves the unpacked weights behind in the heap

    def _read(self, layer: int, experts: dict[int, int]) -> None:
        loaded = self._kernel.read(layer, experts)
        self._in_worker(lambda: self._install(loaded))

    def _in_worker(self, task: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            task()
            done.set()

        self._tasks.put(run)
        while not done.wait(1.0):
            if not self._thread.is_alive():
                raise ShardError(f"the shard's worker thread is not running: {self.error!r}")

    def _forget(self, layer: int, experts: dict[int, int]) -> None:
        for slot in experts:
            if self._held[layer, slot] >= 0:
                self._slot_of[layer, self._held[layer, slot]] = -1
                self._held[layer, slot] = -1

    def _install(self, loaded: LoadedSlots) -> None:
        self._kernel.install(loaded)
        for slot, expert in loaded.experts.items():
            self._held[loaded.layer, slot] = expert
            self._slot_of[loaded.layer, expert] = slot
        self._count(read_bytes=loaded.read_bytes)

    def _count(
        self, *, rows: int = 0, batches: int = 0, computed_s: float = 0.0, read_bytes: int = 0
    ) -> None:
        was = self.stats
        self.stats = WorkerStats(
            was.rows + rows,
            was.batches + batches,
            was.computed_s + computed_s,
            was.read_bytes + read_bytes,
        )

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while not self._stopping.is_set():
                while not self._tasks.empty():
                    self._tasks.get()()
                self._serve(self._port.receive(IDLE_POLL_S))
        except BaseException as error:  # the thread's top loop: the actor reports it
            self.error = error
            log.exception("shard worker died")
        finally:
            self._port.close()  # whoever waits for rows learns it at once

    def _serve(self, deliveries: list[Delivery]) -> None:
        by_layer: dict[int, list[Delivery]] = {}
        for delivery in deliveries:
            by_layer.setdefault(delivery.request.layer, []).append(delivery)
        for layer, waiting in by_layer.items():
            self._serve_layer(layer, [d for d in waiting if self._accepts(d)])

    def _accepts(self, delivery: Delivery) -> bool:
        """Whether all its experts are here; if not, it is refused."""
        request = delivery.request
        problem = self._problem(request)
        if problem:
            self._port.answer(delivery, RowsRefusal(request.number, problem))
        return not problem

    def _problem(self, request: RowsRequest) -> str:
        n_layers, n_experts = self._slot_of.shape
        layer, rows = request.layer, request.rows
        if layer >= n_layers:
            return f"layer {layer} of {n_layers}"
        wanted, places = request.pair_experts.numpy(), request.pair_rows.numpy()
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= n_experts:
            return f"experts outside 0-{n_experts - 1}"
        if places.min() < 0 or places.max() >= rows.shape[0]:
            return f"pair rows outside 0-{rows.shape[0] - 1}"
        missing = np.unique(wanted[self._slot_of[layer][wanted] < 0])
        return f"layer {layer} experts {missing.tolist()} are not held here" if missing.size else ""

    @torch.inference_mode()
    def _serve_layer(self, layer: int, waiting: list[Delivery]) -> None:
        if not waiting:
            return
        started_s = time.monotonic()
        requests = [d.request for d in waiting]
        gathered = [r.rows.index_select(0, r.pair_rows) for r in requests]
        experts = np.concatenate([r.pair_experts.numpy() for r in requests])
        slots = torch.from_numpy(self._slot_of[layer][experts])
        try:
            rows = self._kernel.run(layer, torch.cat(gathered), slots)
        except RuntimeError as error:
            log.exception("batch failed: layer=%s rows=%s", layer, len(experts))
            for delivery in waiting:
                self._port.answer(delivery, RowsRefusal(delivery.request.number, str(error)))
            return
        computed_s = time.monotonic() - started_s
        start = 0
        for delivery in waiting:
            count = delivery.request.pair_experts.shape[0]
            answer = RowsAnswer(
                delivery.request.number,
                rows[start : start + count],
                waited_us=round((started_s - delivery.arrived_s) * 1e6),
                computed_us=round(computed_s * 1e6),
            )
            self._port.answer(delivery, answer)
            start += count
        self._count(rows=start, batches=1, computed_s=computed_s)

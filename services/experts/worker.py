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
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from router import slots
from router.errors import ShardError
from router.rows import Rows
from router.slots import find_slots
from router.table import ShardAddress
from services.experts.account import WorkerStats
from services.experts.direct_room import DirectRoom
from services.experts.kernel import ExpertKernel, LoadedSlots
from services.experts.threads import ThreadChoice
from services.experts.watch import ShardWatch, named
from services.lifecycle import give_back_memory, keep_memory, let_others_first
from services.tracing import Tracing
from services.transport import direct_port
from services.transport.base import Delivery, RowPort, RowsAnswer, RowsRefusal, RowsRequest
from services.transport.direct_port import ARRIVED_NS, BUSY, LAYER, N_PAIRS, NUMBER
from services.transport.libc import NS
from services.transport.staging import PairRoom, to_host

log = logging.getLogger(__name__)

IDLE_WAIT_S = 10.0  # what there is to do wakes the thread
MOST_KEPT = 256  # pairs of a batch whose room is kept, as decoding repeats few sizes
ROOMS_KEPT = 32


class ShardWorker:
    """Slots, rows and answers of one shard."""

    def __init__(
        self, kernel: ExpertKernel, port: RowPort, *, threads: int, tracing: Tracing | None = None
    ) -> None:
        """threads: CPU threads of the kernel at most, less those that a sender keeps busy."""
        self._kernel = kernel
        self._port = port
        self._threads = self._threads_now = threads
        self._choice = ThreadChoice()
        self._watch = ShardWatch(tracing or Tracing(), port.address.shard_id)
        self._held = np.full((kernel.n_layers, kernel.n_slots), -1, np.int32)
        self._slot_of = np.full((kernel.n_layers, kernel.n_experts), -1, np.int32)
        self._kept_room = lru_cache(ROOMS_KEPT)(PairRoom)
        self._direct_room: DirectRoom | None = None  # since the first batch, which shows what comes
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.stats = WorkerStats()
        self.layer_rows = np.zeros(kernel.n_layers, np.int64)
        self.error: BaseException | None = None
        for module in (slots, direct_port):
            module.warm_up()
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
        self._port.wake()
        self._thread.join(timeout=10)

    def held(self) -> NDArray[np.int32]:
        """[L, S] the expert in each slot that can be used now, -1 for none."""
        return self._held.copy()

    def load(self, layer: int, experts: dict[int, int]) -> None:
        """Read experts into slots (slot → expert) while serving goes on; returns when usable.

        What the slots held is not served from the start of the call. Raises ShardError.
        """
        started_s = time.monotonic()
        self._in_worker(lambda: self._forget(layer, experts))
        self._read(layer, experts)
        give_back_memory()  # packing leaves the unpacked weights behind in the heap
        load_s = time.monotonic() - started_s
        self._in_worker(lambda: self._count(loaded=len(experts), load_s=load_s))

    def _read(self, layer: int, experts: dict[int, int]) -> None:
        loaded = self._kernel.read(layer, experts)
        self._in_worker(lambda: self._install(loaded))

    def _in_worker(self, task: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            task()
            done.set()

        self._tasks.put(run)
        self._port.wake()
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

    def _count(self, **more: float) -> None:
        """Add to the totals, in the worker's thread."""
        was = self.stats
        self.stats = replace(was, **{name: getattr(was, name) + n for name, n in more.items()})

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        if not torch.cuda.is_available():
            let_others_first()
            keep_memory()
        try:
            while not self._stopping.is_set():
                while not self._tasks.empty():
                    self._tasks.get()()
                if not self._serve_directly():
                    self._serve(self._port.receive(IDLE_WAIT_S))
        except BaseException as error:  # the thread's top loop: the actor reports it
            self.error = error
            log.exception("shard worker died")
        finally:
            self._port.close()  # whoever waits for rows learns it at once

    def _serve(self, deliveries: list[Delivery]) -> None:
        alike: dict[tuple[int, str, int], list[Delivery]] = {}
        for delivery in deliveries:
            layer, rows = delivery.request.layer, delivery.request.rows
            alike.setdefault((layer, rows.dtype.char, rows.shape[1]), []).append(delivery)
        for (layer, *_), waiting in alike.items():
            self._serve_batch(layer, waiting)

    def _room(self, n_pairs: int, like: Rows) -> PairRoom:
        make = self._kept_room if n_pairs <= MOST_KEPT else PairRoom
        return make(n_pairs, like.shape[1], like.dtype, self._kernel.device)

    def _take(self, delivery: Delivery, room: PairRoom, start: int) -> bool:
        """Put rows and slots of its pairs there; False if an expert is not here: it was refused."""
        request = delivery.request
        place = slice(start, start + request.pair_rows.size)
        if request.layer < self._slot_of.shape[0] and find_slots(
            self._slot_of[request.layer],
            request.pair_experts,
            request.pair_rows,
            request.rows.shape[0],
            room.slots[place],
        ):
            request.rows.take(request.pair_rows, axis=0, out=room.rows[place], mode="clip")
            return True
        problem = self._problem(request)
        self._port.answer(delivery, RowsRefusal(request.number, problem))
        self._watch.refused(delivery, problem)
        return False

    def _problem(self, request: RowsRequest) -> str:
        n_layers, n_experts = self._slot_of.shape
        layer, rows = request.layer, request.rows
        if layer >= n_layers:
            return f"layer {layer} of {n_layers}"
        wanted, places = request.pair_experts, request.pair_rows
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= n_experts:
            return f"experts outside 0-{n_experts - 1}"
        if places.min() < 0 or places.max() >= rows.shape[0]:
            return f"pair rows outside 0-{rows.shape[0] - 1}"
        missing = np.unique(wanted[self._slot_of[layer][wanted] < 0])
        return f"layer {layer} experts {missing.tolist()} are not held here"

    def _use_threads(self, n_pairs: int, most: int) -> None:
        threads = self._choice.threads_for(n_pairs, most=most)
        if threads != self._threads_now:
            torch.set_num_threads(threads)
            self._threads_now = threads

    def _serve_batch(self, layer: int, asked: list[Delivery]) -> None:
        started_s = time.monotonic()
        room = self._room(sum(d.request.pair_rows.size for d in asked), asked[0].request.rows)
        waiting, n_pairs = [], 0
        for delivery in asked:
            if self._take(delivery, room, n_pairs):
                waiting.append(delivery)
                n_pairs += delivery.request.pair_rows.size
        if not waiting:
            return
        most = self._threads - max(delivery.request.busy_threads for delivery in waiting)
        self._use_threads(n_pairs, most)
        try:
            answers = to_host(self._kernel.run(layer, *room.on_device(n_pairs)))
        except RuntimeError as error:
            requests = [delivery.request for delivery in waiting]
            named_ids = ",".join(map(named, requests))
            _log_failure(layer, n_pairs, [request.number for request in requests], named_ids)
            for delivery in waiting:
                self._port.answer(delivery, RowsRefusal(delivery.request.number, str(error)))
                self._watch.refused(delivery, str(error))
            return
        computed_s = time.monotonic() - started_s
        start = 0
        for delivery in waiting:
            count = delivery.request.pair_rows.size
            answer = RowsAnswer(
                delivery.request.number,
                answers[start : start + count],
                waited_us=round((started_s - delivery.arrived_s) * 1e6),
                computed_us=round(computed_s * 1e6),
            )
            self._port.answer(delivery, answer)
            start += count
        for delivery in waiting:
            self._watch.served(
                delivery, started_s=started_s, computed_s=computed_s, batch_rows=start
            )
        queued_s = sum(started_s - delivery.arrived_s for delivery in waiting)
        self._note(layer, n_pairs, most=most, computed_s=computed_s, queued_s=queued_s)
        rows, device = waiting[0].request.rows, self._kernel.device
        if device.type == "cpu" and not (self._direct_room and self._direct_room.is_for(rows)):
            self._direct_room = DirectRoom(rows, device)

    def _serve_directly(self) -> bool:
        """The next batch by the short way, or none for a while; False: look on the long way."""
        direct, room = self._port.direct(), self._direct_room
        if direct is None or room is None:
            return False
        asked = room.take(direct, self._slot_of, timeout_s=IDLE_WAIT_S)
        if not asked:
            return asked is not None
        started_s = time.monotonic()
        layer, n_pairs = asked[0][LAYER], sum([request[N_PAIRS] for request in asked])
        most = self._threads - max([request[BUSY] for request in asked])
        self._use_threads(n_pairs, most)
        try:
            rows = self._kernel.run(layer, *room.on_device(n_pairs)).contiguous()
        except RuntimeError as error:
            _log_failure(layer, n_pairs, [request[NUMBER] for request in asked], "-")
            direct.refuse(asked, str(error))
            return True
        computed_s = time.monotonic() - started_s
        computed_us = round(computed_s * 1e6)
        direct.answer(asked, rows, started_s=started_s, computed_us=computed_us)
        queued_s = sum([started_s - request[ARRIVED_NS] / NS for request in asked])
        self._note(layer, n_pairs, most=most, computed_s=computed_s, queued_s=queued_s)
        return True

    def _note(
        self, layer: int, n_pairs: int, *, most: int, computed_s: float, queued_s: float
    ) -> None:
        self._choice.took(n_pairs, computed_s, most=most)
        self._count(rows=n_pairs, batches=1, computed_s=computed_s, queued_s=queued_s)
        self.layer_rows[layer] += n_pairs


def _log_failure(layer: int, n_pairs: int, numbers: list[int], request_ids: str) -> None:
    log.exception(
        "batch failed: request_ids=%s numbers=%s layer=%s rows=%s",
        request_ids,
        ",".join(map(str, numbers)),
        layer,
        n_pairs,
    )

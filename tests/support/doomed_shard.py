"""One shard as one process, which strikes itself at an exact moment of an exact request.

Kernel, socket and worker are the real ones, with a trap where a request passes. What the process
says on its pipe: its address when it can serve, that it is about to be struck, and that it has
answered after it was stopped and continued. `doomed_pool` holds the other end.
"""

import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig

from router.rows import as_array
from router.table import ShardId
from services.experts.engine import shard_vllm_config
from services.experts.vllm_kernel import VllmKernel
from services.experts.worker import ShardWorker
from services.lifecycle import end_with_parent
from services.transport.base import Delivery, RowsAnswer, RowsRefusal
from services.transport.direct_port import LAYER, NUMBER, STREAM, DirectPort
from services.transport.sockets import SocketPort
from tests.support.kill_scenarios import Lie, Moment, Strike

NEXT_REQUEST_TIMEOUT_S = 60.0


class Trap:
    """Raises the signal of a strike when its request comes by."""

    def __init__(self, notes: Connection) -> None:
        self._notes = notes
        self._strike: Strike | None = None
        self._left = 0
        self._was_stopped = False

    def arm(self, strike: Strike) -> None:
        """Count requests from now on."""
        self._left = strike.nth
        self._strike = strike

    def is_due(self, moment: Moment, layer: int) -> bool:
        """Whether this request is the one; asked once per request and moment."""
        strike = self._strike
        if strike is None or (strike.moment, strike.layer) != (moment, layer):
            return False
        self._left -= 1
        return self._left == 0

    def strike(self) -> Lie | None:
        """Returns from a stop when the process is continued, and at once with the lie to tell."""
        assert self._strike is not None
        number, self._strike = self._strike.signal, None
        self._notes.send("struck")
        if isinstance(number, Lie):
            return number
        # To this very thread: a stop sent to the process would let it run on for a while.
        signal.raise_signal(number)
        self._was_stopped = True
        return None

    def answered(self) -> None:
        """A reply has gone out; says so if it is the first after a stop."""
        if self._was_stopped:
            self._was_stopped = False
            self._notes.send("answered late")


class DoomedKernel(VllmKernel):
    """A kernel that may fall silent half-way."""

    def __init__(self, vllm_config: VllmConfig, n_slots: int, trap: Trap) -> None:
        super().__init__(vllm_config, n_slots)
        self._trap = trap

    def run(self, layer: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        if self._trap.is_due(Moment.COMPUTING, layer):
            half = (rows.shape[0] + 1) // 2
            super().run(layer, rows[:half], slots[:half])
            self._trap.strike()
        return super().run(layer, rows, slots)


class DoomedPort(SocketPort):
    """A port that may fall silent before, between or after a request and its answer."""

    def __init__(self, shard_id: ShardId, *, run_dir: Path, trap: Trap) -> None:
        super().__init__(shard_id, host="test", run_dir=run_dir)
        self._trap = trap

    def receive(self, timeout_s: float) -> list[Delivery]:
        deliveries = super().receive(timeout_s)
        for delivery in deliveries:
            if self._trap.is_due(Moment.RECEIVED, delivery.request.layer):
                self._trap.strike()
        return deliveries

    def direct(self) -> DirectPort | None:
        direct = super().direct()
        if direct is not None and not isinstance(direct, DoomedDirect):
            direct = self._near._direct = DoomedDirect(direct, self)
        return direct

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        with self.answering(delivery.request.layer) as lie:
            super().answer(delivery, answer if lie is None else spoilt(answer, lie))

    @contextmanager
    def answering(self, layer: int) -> Iterator[Lie | None]:
        """Strikes before, between and after; what is to be answered in place of the truth."""
        yield self._trap.strike() if self._trap.is_due(Moment.ANSWERED, layer) else None
        self._trap.answered()
        if self._trap.is_due(Moment.SENDING, layer):
            self._trap.strike()
        if self._trap.is_due(Moment.REPLIED, layer):
            select.select(self._near.files, [], [], NEXT_REQUEST_TIMEOUT_S)
            self._trap.strike()


class DoomedDirect(DirectPort):
    """The short way through such a port. Of one attention replica: a batch is one request."""

    def __init__(self, whole: DirectPort, port: DoomedPort) -> None:
        vars(self).update(vars(whole))
        self._port = port

    def take(self, *arguments: Any, **more: Any) -> list[list[int]] | None:
        asked = super().take(*arguments, **more)
        if asked and self._port._trap.is_due(Moment.RECEIVED, asked[0][LAYER]):
            self._port._trap.strike()
        return asked

    def answer(self, asked: Sequence[Sequence[int]], rows: torch.Tensor, **more: Any) -> None:
        [request] = asked
        with self._port.answering(request[LAYER]) as lie:
            if lie is None:
                super().answer(asked, rows, **more)
            else:
                answer = spoilt(RowsAnswer(request[NUMBER], as_array(rows)), lie)
                self._answer(self.streams[request[STREAM]], answer, 0)


def spoilt(answer: RowsAnswer | RowsRefusal, lie: Lie) -> RowsAnswer:
    """The answer of a shard that computes or counts wrongly."""
    assert isinstance(answer, RowsAnswer)
    rows = answer.rows.copy()
    if lie is Lie.NAN:
        rows[-1, 0] = float("nan")
    if lie is Lie.SHORT:
        rows = rows[:-1]
    return RowsAnswer(answer.number + 10**6 * (lie is Lie.STRANGE), rows)


def run_shard(
    pipe: Connection, name: str, held: dict[int, list[int]], model: str, run_dir: Path
) -> None:
    """Serve what `held` (layer → experts) says until struck, or until the pool hangs up."""
    end_with_parent()
    trap = Trap(pipe)
    n_slots = max(len(experts) for experts in held.values())
    kernel = DoomedKernel(shard_vllm_config(model, dtype="float32"), n_slots, trap)
    worker = ShardWorker(kernel, DoomedPort(ShardId(name), run_dir=run_dir, trap=trap), threads=1)
    worker.start()
    for layer, experts in held.items():
        worker.load(layer, dict(enumerate(experts)))
    pipe.send(worker.address)
    while True:
        try:
            trap.arm(pipe.recv())
        except EOFError:
            return
        pipe.send("armed")

"""One layer of one step while its rows are away: what the link reports drives the exchange."""

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from router.errors import PeerLost, RoutingError
from router.exchange import LayerExchange, SendRows
from router.rows import Rows
from router.table import ShardId
from services.attention.cores import busy_threads
from services.transport.base import Answered, RowsAnswer, RowsRefusal, RowsRequest
from services.transport.origin import Origin
from services.transport.staging import host_empty

if TYPE_CHECKING:
    from services.attention.remote_pool import RemotePool

STRANDED_POLL_S = 0.02
RETRY_REFUSED_S = 1.0  # a shard that refused for another reason than its slots may take them now


class LayerStep:
    """Sends, waits, sends again, until every pair is answered."""

    def __init__(
        self,
        pool: "RemotePool",
        exchange: LayerExchange,
        layer: int,
        rows: Rows,
        device: torch.device,
        *,
        answers: Rows | None = None,
    ) -> None:
        """rows: [T, H] what is sent; device: where answers are wanted in the end.

        answers: [T * K, H] where they are put, if not in a new place.
        """
        self._pool = pool
        self._exchange = exchange
        self._layer = layer
        self._rows = rows
        self._device = device
        self._answers = answers
        self._sent_s: dict[ShardId, float] = {}
        self._retried_s = time.monotonic()
        self.chosen_s = 0.0  # perf_counter, between choosing and sending
        pool.open_layers.append(self)
        self.origin: Origin | None = None  # of a layer that is followed
        self.answered: list[tuple[SendRows, RowsAnswer]] = []

    def again(self, exchange: LayerExchange) -> "LayerStep":
        """The same rows with another exchange, whose answers take the place of this one's."""
        return LayerStep(
            self._pool, exchange, self._layer, self._rows, self._device, answers=self._answers
        )

    def begin(self) -> None:
        """Choose a shard for every pair and send."""
        sends = self._exchange.begin()
        self.chosen_s = time.perf_counter()
        self.send(sends)

    def long_way(self) -> "LayerStep":
        """See `DirectLayer`."""
        return self

    def was_sent(self, sends: tuple[SendRows, ...], *, at_s: float) -> None:
        """These have gone the short way, all of each. at_s: perf_counter, which is monotonic."""
        for send in sends:
            self._count(send, send.rows.tokens.size, at_s)

    def _count(self, send: SendRows, n_rows: int, at_s: float) -> None:
        self._sent_s[send.shard_id] = at_s
        traffic = self._pool.traffic
        traffic.sends += 1
        traffic.rows_sent += n_rows
        traffic.bytes_sent += n_rows * self._rows.shape[1] * self._rows.itemsize

    def send(self, sends: tuple[SendRows, ...], *, sent: int = 0) -> None:
        """Send rows; what cannot be sent counts as lost at once.

        sent: bytes of the first that have gone the short way.
        """
        busy: dict[ShardId, int] = {}
        if self._pool.turns.is_split:
            busy = busy_threads(self._pool.shards_here(), threads=torch.get_num_threads())
        for send in sends:
            rows, there = send.rows, self._rows
            if rows.tokens.size < there.shape[0]:
                there = there.take(rows.tokens, axis=0)
            request = RowsRequest(
                send.number,
                self._layer,
                there,
                rows.pair_rows,
                rows.pair_experts,
                self.origin,
                busy.get(send.shard_id, 0),
            )
            self._count(send, there.shape[0], time.monotonic())
            try:
                self._pool.link.send(send.shard_id, request, sent)
            except PeerLost as error:
                self._lost(send.shard_id, str(error))
            sent = 0

    def finish(self, *, is_patient: bool = True) -> Rows:
        """Returns [T * K, H] when every pair is answered. Raises RoutingError if experts stay away.

        is_patient: False returns without those that no live shard answers.
        """
        try:
            self._finish(is_patient)
        finally:
            self._pool.open_layers.remove(self)
        return self._room() if self._answers is None else self._answers  # None: no pair

    def _finish(self, is_patient: bool) -> None:
        while not self._exchange.is_done:
            if self._exchange.has_stranded:
                if is_patient:
                    self._seek_stranded()
                elif not self._exchange.waiting_for:
                    return
            for event in self._pool.link.receive(self._patience_s()):
                if isinstance(event, Answered):
                    self._sender_of(event).take(event.shard_id, event.answer)
                elif event.is_wrong:
                    self._wrong(event.shard_id, event.reason)
                else:
                    self._lost(event.shard_id, event.reason)
            if not self._exchange.is_done:
                self._check_deadlines()

    def _sender_of(self, event: Answered) -> "LayerStep":
        """Which of the two halves of a step sent what is answered; this one if neither did."""
        answer = event.answer
        halves = (step for step in self._pool.open_layers if step is not self)
        return next((s for s in halves if s.expects(answer.number, event.shard_id)), self)

    def expects(self, number: int, shard_id: ShardId) -> bool:
        """Whether this is the answer to a send of this layer's that is still open."""
        return self._exchange.expects(number, shard_id) is not None

    def was_left_for(self, seconds: float) -> None:
        """Nobody read answers for so long, which is no shard's fault."""
        for shard_id in self._sent_s:
            self._sent_s[shard_id] = min(time.monotonic(), self._sent_s[shard_id] + seconds)

    def _patience_s(self) -> float:
        if self._exchange.has_stranded:
            return STRANDED_POLL_S
        waiting = [self._sent_s[s] for s in self._exchange.waiting_for]
        deadline_s = min(waiting, default=0.0) + self._pool.settings.reply_timeout_s
        return max(0.0, deadline_s - time.monotonic()) + 0.001

    def take(self, shard_id: ShardId, answer: RowsAnswer | RowsRefusal) -> None:
        """Something has come from a shard."""
        if isinstance(answer, RowsRefusal):
            self._pool.note_refused(shard_id, answer.number, answer.reason)
            self._resend(self._exchange.on_refused(answer.number, shard_id))
            return
        send = self._exchange.expects(answer.number, shard_id)
        if send is None:
            if answer.number > self._pool.numbers.last:
                self._wrong(shard_id, f"answered number {answer.number}, which was never sent")
            self._pool.traffic.late_answers += 1
            return
        positions = send.rows.pair_positions
        wanted = (positions.size, self._rows.shape[1])
        if answer.rows.shape != wanted or answer.rows.dtype != self._rows.dtype:
            got = f"{list(answer.rows.shape)} {answer.rows.dtype}"
            self._wrong(shard_id, f"answered {got} to {list(wanted)} {self._rows.dtype}")
            return
        self._exchange.on_answer(answer.number)
        self._keep(positions, answer.rows)
        self.answered.append((send, answer))
        traffic = self._pool.traffic
        traffic.rows_returned += positions.size
        traffic.bytes_returned += answer.rows.nbytes
        traffic.row_s += positions.size * (time.monotonic() - self._sent_s[shard_id])

    def _keep(self, positions: NDArray[np.int32], rows: Rows) -> None:
        if self._answers is None:
            if positions.size == self._exchange.n_pairs and rows.flags.writeable:
                self._answers = rows  # all of them, in their order
                return
            self._answers = self._room()
        self._answers[positions] = rows

    def _room(self) -> Rows:
        shape = (self._exchange.n_pairs, self._rows.shape[1])
        return host_empty(shape, self._rows.dtype, self._device)

    def account(self, n_shards: int) -> tuple[NDArray[np.float64], tuple[float, float]]:
        """[2, S] seconds that each shard queued and computed, and rows that it answered.

        And the seconds that the one which took longest has queued, and computed.
        """
        times, slowest = np.zeros((2, n_shards)), (0, 0)
        for send, answer in self.answered:
            took_us = answer.waited_us + answer.computed_us
            times[0, send.rows.shard] += took_us * 1e-6
            times[1, send.rows.shard] += answer.rows.shape[0]
            slowest = max(slowest, (took_us, answer.computed_us))
        total_us, computed_us = slowest
        return times, ((total_us - computed_us) * 1e-6, computed_us * 1e-6)

    def _lost(self, shard_id: ShardId, reason: str) -> None:
        self._pool.lose(shard_id, reason)
        self._leave_out(shard_id)

    def _wrong(self, shard_id: ShardId, reason: str) -> None:
        self._pool.lose(shard_id, reason, is_wrong=True)
        self._leave_out(shard_id)

    def _leave_out(self, shard_id: ShardId) -> None:
        """What is lost to one half of a step is lost to the other one."""
        for step in self._pool.open_layers:
            step._resend(step._exchange.on_lost(shard_id))

    def keep_to(self, listed: Collection[ShardId]) -> None:
        """A table was adopted: from shards that it does not list no answer comes any more."""
        for shard_id in self._exchange.waiting_for.difference(listed):
            self._resend(self._exchange.on_lost(shard_id))

    def _resend(self, sends: tuple[SendRows, ...]) -> None:
        self._pool.traffic.resends += len(sends)
        self.send(sends)

    def _check_deadlines(self) -> None:
        limit_s = self._pool.settings.reply_timeout_s
        now_s = time.monotonic()
        for shard_id in self._exchange.waiting_for:
            if now_s - self._sent_s[shard_id] > limit_s:
                self._lost(shard_id, f"no answer within {limit_s} s")

    def _seek_stranded(self) -> None:
        limit_s = self._pool.settings.give_up_s
        experts = list(self._exchange.stranded_experts)
        what = f"layer {self._layer}: no live shard holds experts {experts}"
        self._pool.note_stranded(what)
        now_s = time.monotonic()
        waited_s = now_s - (self._pool.stranded_since_s or now_s)
        table = self._pool.newer_than(self._exchange.table_version)
        if table is not None:
            self._resend(self._exchange.on_table(table, dead=self._pool.dead))
        elif self._exchange.has_refused and now_s - self._retried_s > RETRY_REFUSED_S:
            self._retried_s = now_s
            self._resend(self._exchange.retry_refused())
        elif waited_s > limit_s:
            raise RoutingError(
                f"{what}; waited {waited_s:.0f} s, the limit is {limit_s:g} s (240 s, or four "
                "times router.lost_expert_deadline_s). Look at `python -m deploy status`"
            )

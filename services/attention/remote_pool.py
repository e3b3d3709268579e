"""The pool as an attention worker sees it: one call per layer, rows in, combined rows out.

Drives `router.exchange` with what the link reports. Holds the current table and the shards
found dead since it was published; adopts a newer table between steps, or in the middle of one
only for experts that no live shard holds any more.
"""

import itertools
import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from router import choose, dispatch
from router.combine import combine
from router.errors import PeerLost, RoutingError
from router.exchange import LayerExchange, SendRows
from router.table import ReplicaTable, ShardId
from services.attention.feed import TableFeed, WorkerReport
from services.attention.settings import RemoteSettings
from services.transport.base import Answered, RowsRefusal, RowsRequest, ShardLink
from services.transport.zeromq import ZmqLink

log = logging.getLogger(__name__)

WAIT_LOG_INTERVAL_S = 5.0
REPORT_INTERVAL_S = 0.5


class RemotePool:
    """Used by the one thread that runs the model."""

    def __init__(self, settings: RemoteSettings, feed: TableFeed, link: ShardLink) -> None:
        self._settings = settings
        self._feed = feed
        self._link = link
        self._table: ReplicaTable | None = None
        self._dead: set[ShardId] = set()
        self._numbers = itertools.count(1)
        self._report = WorkerReport()
        self._reported_s = 0.0
        self.late_answers = 0
        self.resends = 0

    @classmethod
    def connect(cls, settings: RemoteSettings) -> "RemotePool":
        """Join this replica's server process and take the keys it hands out."""
        choose.warm_up()  # compiled in the middle of a failure they would stall every stream
        dispatch.warm_up()
        feed = TableFeed(settings.feed)
        keys = feed.join()
        return cls(settings, feed, ZmqLink(host=settings.host, keys=keys))

    def wait_until_complete(self, n_layers: int) -> None:
        """Return when every expert has a replica; say meanwhile what is missing."""
        started_s = logged_s = time.monotonic()
        while True:
            table = self._feed.wait(timeout_s=1.0)
            if table is not None:
                self._adopt(table)
            current = self._table
            if current is not None and current.is_complete:
                break
            now_s = time.monotonic()
            if now_s - logged_s >= WAIT_LOG_INTERVAL_S:
                logged_s = now_s
                log.info(
                    "waiting for experts: %s waited_s=%.0f", _missing(current), now_s - started_s
                )
        if current.n_layers != n_layers:
            raise RoutingError(
                f"the pool serves {current.n_layers} MoE layers and this model has {n_layers}: "
                "attention and experts were started with different checkpoints"
            )
        log.info("table complete: table_version=%s shards=%s", current.version, len(current.shards))

    def compute(
        self,
        layer: int,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        *,
        meanwhile: Callable[[], None],
    ) -> torch.Tensor:
        """Routed experts of one layer.

        x: [T, H]; topk_weights: [T, K] float32; topk_ids: [T, K] integer, all on one device.
        meanwhile: called once while rows are away.
        Returns [T, H] of x's dtype and device, the K rows of each token added in gate order.
        Raises RoutingError if an expert stays without a live shard past the deadline.
        """
        if layer == 0:
            self._between_steps()
        assert self._table is not None
        ids = topk_ids.to(device="cpu", dtype=torch.int32).contiguous().numpy()
        rows = _to_host(x)
        exchange = LayerExchange(
            ids,
            layer=layer,
            table=self._table,
            dead=frozenset(self._dead),
            numbers=self._numbers,
            policy=self._settings.policy,
        )
        step = _Step(self, exchange, layer, rows, n_answers=ids.size)
        step.send(exchange.begin())
        self._report.count(layer, ids, self._table)
        meanwhile()
        step.finish()
        answers = step.answers.to(x.device)
        return combine(answers, topk_weights).to(x.dtype)

    def _between_steps(self) -> None:
        table = self._feed.poll()
        if table is not None:
            self._adopt(table)
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_INTERVAL_S:
            self._send_report()

    def _send_report(self) -> None:
        self._reported_s = time.monotonic()
        self._feed.report(self._report.take(self._table.version if self._table else 0))

    def _adopt(self, table: ReplicaTable) -> None:
        """Use a newer table. A shard found dead is dead until a table without it has come:

        from then on the controller knows, and a table that lists it again means it is back.
        """
        if self._table is not None and table.version <= self._table.version:
            return
        self._link.connect(table.shards)
        self._table = table
        self._dead &= {a.shard_id for a in table.shards}
        log.info(
            "table adopted: table_version=%s shards=%s redundancy=%s",
            table.version,
            len(table.shards),
            table.redundancy(),
        )
        self._send_report()

    def _lose(self, shard_id: ShardId, reason: str) -> None:
        if shard_id in self._dead:
            return
        self._dead.add(shard_id)
        log.warning("shard lost: shard=%s reason=%s", shard_id, reason)
        self._report.lost[shard_id] = reason
        self._send_report()


class _Step:
    """One layer's exchange on the link."""

    def __init__(
        self,
        pool: RemotePool,
        exchange: LayerExchange,
        layer: int,
        rows: torch.Tensor,
        *,
        n_answers: int,
    ) -> None:
        self._pool = pool
        self._exchange = exchange
        self._layer = layer
        self._rows = rows
        self._sent_s: dict[ShardId, float] = {}
        self.answers = torch.empty(n_answers, rows.shape[1], dtype=rows.dtype)

    def send(self, sends: tuple[SendRows, ...]) -> None:
        for send in sends:
            rows = send.rows
            request = RowsRequest(
                number=send.number,
                layer=self._layer,
                rows=self._rows.index_select(0, torch.from_numpy(rows.tokens)),
                pair_rows=torch.from_numpy(rows.pair_rows),
                pair_experts=torch.from_numpy(rows.pair_experts),
            )
            self._sent_s[send.shard_id] = time.monotonic()
            try:
                self._pool._link.send(send.shard_id, request)
            except PeerLost as error:
                self._lost(send.shard_id, str(error))

    def finish(self) -> None:
        """Return when every pair is answered."""
        stranded_since_s: float | None = None
        while not self._exchange.is_done:
            if self._exchange.stranded_experts:
                stranded_since_s = stranded_since_s or time.monotonic()
                self._seek_stranded(time.monotonic() - stranded_since_s)
            for event in self._pool._link.receive(self._patience_s()):
                if isinstance(event, Answered):
                    self._answered(event)
                else:
                    self._lost(event.shard_id, event.reason)
            self._check_deadlines()

    def _patience_s(self) -> float:
        if self._exchange.stranded_experts:
            return 0.02
        waiting = [self._sent_s[s] for s in self._exchange.waiting_for]
        deadline_s = min(waiting, default=0.0) + self._pool._settings.reply_timeout_s
        return max(0.0, deadline_s - time.monotonic()) + 0.001

    def _answered(self, event: Answered) -> None:
        answer = event.answer
        if isinstance(answer, RowsRefusal):
            log.warning("rows refused: shard=%s reason=%s", event.shard_id, answer.reason)
            self._resend(self._exchange.on_refused(answer.number, event.shard_id))
            return
        send = self._exchange.expects(answer.number, event.shard_id)
        if send is None:
            self._pool.late_answers += 1
            return
        positions = send.rows.pair_positions
        wanted = (positions.size, self.answers.shape[1])
        if answer.rows.shape != wanted or answer.rows.dtype != self.answers.dtype:
            got = f"{list(answer.rows.shape)} {answer.rows.dtype}"
            self._lost(event.shard_id, f"answered {got} to {list(wanted)} {self.answers.dtype}")
            return
        self._exchange.on_answer(answer.number)
        self.answers.index_copy_(0, torch.from_numpy(positions).long(), answer.rows)

    def _lost(self, shard_id: ShardId, reason: str) -> None:
        self._pool._lose(shard_id, reason)
        self._resend(self._exchange.on_lost(shard_id))

    def _resend(self, sends: tuple[SendRows, ...]) -> None:
        self._pool.resends += len(sends)
        self.send(sends)

    def _check_deadlines(self) -> None:
        limit_s = self._pool._settings.reply_timeout_s
        now_s = time.monotonic()
        for shard_id in self._exchange.waiting_for:
            if now_s - self._sent_s[shard_id] > limit_s:
                self._lost(shard_id, f"no answer within {limit_s} s")

    def _seek_stranded(self, waited_s: float) -> None:
        limit_s = self._pool._settings.lost_expert_deadline_s
        table = self._pool._feed.poll()
        if table is not None:
            self._pool._adopt(table)
            assert self._pool._table is not None
            dead = frozenset(self._pool._dead)
            self._resend(self._exchange.on_table(self._pool._table, dead=dead))
        elif waited_s > limit_s:
            raise RoutingError(
                f"layer {self._layer}: no live shard holds experts "
                f"{list(self._exchange.stranded_experts)}; waited {waited_s:.0f} s, the limit is "
                f"router.lost_expert_deadline_s={limit_s:.0f}. Look at `python -m deploy status`"
            )


def _to_host(x: torch.Tensor) -> torch.Tensor:
    """x as a contiguous CPU tensor; from a GPU through pinned memory."""
    if x.device.type == "cpu":
        return x.contiguous()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return host


def _missing(table: ReplicaTable | None) -> str:
    if table is None:
        return "the controller has not published a table yet"
    there = int(np.count_nonzero(table.counts))
    return (
        f"table_version={table.version} shards={len(table.shards)} "
        f"experts_with_a_replica={there}/{table.counts.size}"
    )

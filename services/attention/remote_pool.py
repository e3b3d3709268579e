"""The pool as an attention worker sees it: one call per layer, rows in, combined rows out.

Holds the current table and the shards found dead since it was published; adopts a newer table
between steps, or in the middle of one only for experts that no live shard holds any more. One
layer's rows while they are away are `layer_step`'s.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from router import choose, combine, dispatch, grouped_topk, service_times
from router.errors import RoutingError
from router.exchange import LayerExchange, SendNumbers
from router.rows import Rows
from router.service_times import ServiceTimes
from router.table import ReplicaTable, ShardId
from services.attention import traffic
from services.attention.cores import shards_on
from services.attention.direct_layer import DirectLayer, launch
from services.attention.feed import TableFeed, WorkerReport, describe_missing
from services.attention.layer_step import LayerStep
from services.attention.layer_times import LayerTimes
from services.attention.recheck import recheck
from services.attention.settings import RemoteSettings
from services.attention.steps import Steps
from services.attention.turns import Turns
from services.transport import direct_link
from services.transport.base import ShardLink
from services.transport.sockets import SocketLink
from services.transport.staging import to_host

log = logging.getLogger(__name__)

COMPILED = (grouped_topk, choose, dispatch, combine, service_times, direct_link, traffic)
WAIT_LOG_INTERVAL_S = 5.0
REPORT_INTERVAL_S = 0.5
NOTED_AT_ONCE = 8  # layers; the first of them takes as long as the others together
Untold = tuple[ReplicaTable, int, NDArray[np.int32], LayerStep | DirectLayer, tuple[float, ...]]
"""A layer that has ended: its table, index, ids, rows that were away, and when what happened."""
FORGIVE_S = 5.0  # in which the controller would have published a table without a dead shard


class RemotePool:
    """Used by the thread that runs the model, and between its steps by `follow_while_idle`."""

    def __init__(self, settings: RemoteSettings, feed: TableFeed, link: ShardLink) -> None:
        self.settings = settings
        self.link = link
        self.numbers = SendNumbers()
        self.dead: frozenset[ShardId] = frozenset()
        self.stranded_since_s: float | None = None  # in this step
        self._lost_s: dict[ShardId, float] = {}  # those of the dead that may be back
        self._feed = feed
        self._table: ReplicaTable | None = None
        self.service_times = ServiceTimes(0)
        self.times = LayerTimes()
        self.traffic = traffic.Traffic()
        self.steps = Steps.of(settings)
        self.turns = Turns()
        self.open_layers: list[LayerStep] = []  # one, or one of each half of a step
        self._untold: list[Untold] = []
        self._report = WorkerReport()
        self._last_layer = 0
        self._in_step = False
        self._lock = threading.Lock()  # held by whoever adopts tables between steps
        self._reported_s = 0.0

    @classmethod
    def connect(cls, settings: RemoteSettings) -> "RemotePool":
        """Join this replica's server process and take the keys it hands out."""
        for module in COMPILED:
            module.warm_up()  # compiled in the middle of a step they would stall every stream
        feed = TableFeed(settings.feed)
        keys = feed.join()
        return cls(settings, feed, SocketLink(host=settings.host, keys=keys))

    def follow_while_idle(self) -> None:
        """Begin to adopt tables and report also when no request comes, between steps only.

        Without it an idle replica would hold up moves, which wait until nobody uses a replica.
        """
        threading.Thread(target=self._follow, name="idle-follower", daemon=True).start()

    def _follow(self) -> None:
        while True:
            time.sleep(REPORT_INTERVAL_S)
            try:
                with self._lock:
                    if not self._in_step:
                        self._between_steps()
            except Exception:  # the thread's top loop; a step meets the same and raises it
                log.exception("a table could not be adopted")

    def wait_until_complete(self, n_layers: int) -> None:
        """Return when every expert has a replica; say meanwhile what is missing."""
        started_s = logged_s = time.monotonic()
        while True:
            table = self._feed.wait(timeout_s=1.0)
            if table is not None:
                self._adopt(table)
            if (current := self._table) is not None and current.is_complete:
                break
            now_s = time.monotonic()
            if now_s - logged_s >= WAIT_LOG_INTERVAL_S:
                logged_s, missing = now_s, describe_missing(current)
                log.info("waiting for experts: %s waited_s=%.0f", missing, now_s - started_s)
        if current.n_layers != n_layers:
            raise RoutingError(
                f"the pool serves {current.n_layers} MoE layers and this model has {n_layers}: "
                "attention and experts were started with different checkpoints"
            )
        self._last_layer = n_layers - 1
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
        meanwhile: called once while rows are away. After it the other half of a step runs.
        Returns [T, H] of x's dtype and device, the K rows of each token added in gate order.
        Raises RoutingError if an expert stays without a live shard for too long.
        """
        if layer == 0 and self.turns.begins:
            with self._lock:
                self._in_step = True
                self._between_steps()
        table = self._table
        assert table is not None
        began_s = time.perf_counter()
        ids = to_host(topk_ids if topk_ids.dtype is torch.int32 else topk_ids.int())
        step: DirectLayer | LayerStep | None = launch(self, layer, x, ids, table)
        followed = None
        if step is None:
            step = LayerStep(self, self.exchange(layer, ids), layer, to_host(x), x.device)
            followed = self.steps.follow(layer, step) if self.steps.is_followed else None
            step.begin()
        sent_s = time.perf_counter()
        if len(self._untold) >= NOTED_AT_ONCE or isinstance(step, LayerStep):
            self._note_times()
        total = combine.Sum(x, topk_weights)
        meanwhile()
        waiting_s = time.perf_counter()
        if (left_s := self.turns.pass_on()) and isinstance(step, LayerStep):
            step.was_left_for(left_s)
        answers = step.finish()
        answered_s = time.perf_counter() - left_s
        out, is_finite = total.of(answers)
        if not is_finite and self._recheck(step.long_way(), layer, ids, answers):
            out, _ = total.of(answers)
        ended_s = time.perf_counter() - left_s
        marks = (began_s, step.chosen_s, sent_s, waiting_s, answered_s, ended_s)
        self._untold.append((table, layer, ids, step, marks))
        if followed is not None:
            followed.ended(marks, step.long_way().answered)
        if layer == self._last_layer and self.turns.ends:
            self._note_times()
            self.note_stranded("")
            self._in_step = False
        return out

    def _note_times(self) -> None:
        """Of layers that have ended; called while rows are away, or when a step ends."""
        for table, layer, ids, step, marks in self._untold:
            self.traffic.count(layer, ids, table.counts.shape)
            times, slowest = step.account(len(table.shards))
            if self._table is table:  # else the answers are of shards that it numbers otherwise
                self.service_times.observe(times)
            self.traffic.seconds.observe(self.times.add(marks, slowest))
        self._untold.clear()

    def shards_here(self) -> list[ShardId]:
        """Those on this replica's host."""
        return shards_on(self.settings.host, self._table) if self._table else []

    def exchange(
        self, layer: int, ids: NDArray[np.int32], *, without: frozenset[ShardId] = frozenset()
    ) -> LayerExchange:
        """Of a layer in which nothing has begun. without: shards to leave out, and the dead."""
        assert self._table is not None
        return LayerExchange(
            ids,
            layer=layer,
            table=self._table,
            dead=self.dead | without,
            numbers=self.numbers,
            policy=self.settings.policy,
            load=self.service_times.load(),
        )

    def _recheck(self, step: LayerStep, layer: int, ids: NDArray[np.int32], answers: Rows) -> bool:
        def ask(positions: NDArray[np.int32], others_than: frozenset[ShardId]) -> None:
            exchange = self.exchange(layer, ids, without=others_than)
            again = step.again(exchange)
            again.send(exchange.begin(positions[exchange.can_place(positions)]))
            again.finish(is_patient=False)

        sends, blame = [send for send, _ in step.answered], partial(self.lose, is_wrong=True)
        return recheck(answers, sends, layer=layer, ask=ask, blame=blame)

    def _between_steps(self) -> None:
        self.adopt_newer()
        self._forgive()
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_INTERVAL_S:
            self._send_report()

    def _forgive(self) -> None:
        """Try shards again that were lost a while ago and that the table still lists.

        The controller may have left one out and taken it back before this worker looked.
        """
        before_s = time.monotonic() - FORGIVE_S
        forgiven = frozenset(s for s, lost_s in self._lost_s.items() if lost_s < before_s)
        if forgiven and self._table is not None:
            self.dead -= forgiven
            self._lost_s = {s: at_s for s, at_s in self._lost_s.items() if s not in forgiven}
            self.link.connect(self._table.shards)

    def _send_report(self) -> None:
        self._reported_s = time.monotonic()
        report = self._report.take(self._table.version if self._table else 0)
        report.totals = self.traffic.totals(self.times)
        self._feed.report(report)

    def adopt_newer(self) -> None:
        """Use a newer table if one has come in."""
        if (table := self._feed.poll()) is not None:
            self._adopt(table)

    def newer_than(self, version: int) -> ReplicaTable | None:
        """The table, if it is newer than that, or one that has come in is."""
        self.adopt_newer()
        table = self._table
        return table if table is not None and table.version > version else None

    def _adopt(self, table: ReplicaTable) -> None:
        """Use a table if it is newer. A shard that it does not list is dead no longer: from then on

        the controller knows, and a table that lists it again means it is back.
        """
        if self._table is not None and table.version <= self._table.version:
            return
        self.link.connect(table.shards)
        if self._table is None or table.shards != self._table.shards:
            self.service_times = ServiceTimes(len(table.shards))
        self._table = table
        listed = {a.shard_id for a in table.shards}
        self.dead &= listed
        for step in self.open_layers:
            step.keep_to(listed)
        self._lost_s = {s: at_s for s, at_s in self._lost_s.items() if s in self.dead}
        line = "table adopted: table_version=%s shards=%s redundancy=%s"
        log.info(line, table.version, len(table.shards), table.redundancy())
        self._send_report()

    def lose(self, shard_id: ShardId, reason: str, *, is_wrong: bool = False) -> None:
        """Leave a shard out, and tell the controller: it is away, or answers wrongly."""
        if shard_id in self.dead:
            return
        self.dead |= {shard_id}
        self.traffic.wrong += is_wrong
        self.traffic.lost += not is_wrong
        kind, ids = "answers wrongly" if is_wrong else "lost", self.steps.named()
        log.warning("shard %s: request_ids=%s shard=%s reason=%s", kind, ids, shard_id, reason)
        (self._report.wrong if is_wrong else self._report.lost)[shard_id] = reason
        if not is_wrong:
            self._lost_s[shard_id] = time.monotonic()
        self._send_report()

    def note_refused(self, shard_id: ShardId, number: int, reason: str) -> None:
        """A shard would not compute some rows; they go elsewhere."""
        self.traffic.refused += 1
        ids, line = self.steps.named(), "rows refused: request_ids=%s shard=%s number=%s reason=%s"
        log.warning(line, ids, shard_id, number, reason)

    def note_stranded(self, what: str) -> None:
        """Tell the server process at once what a step waits for; empty: the step is done."""
        if what == self._report.stranded:
            return
        if not what or self.stranded_since_s is None:
            level, event = (logging.WARNING, "waits") if what else (logging.INFO, "is done")
            log.log(level, "step %s: request_ids=%s %s", event, self.steps.named(), what)
            self.stranded_since_s = time.monotonic() if what else None
        self._report.stranded = what
        self._send_report()

"""One layer of one step by the short way. `LayerStep` goes on from wherever that does not do."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from router.dispatch import cut
from router.exchange import SendRows
from router.rows import Rows
from router.table import ReplicaTable
from services.attention.layer_step import LayerStep
from services.transport.base import RowsAnswer
from services.transport.direct_link import DirectLink, Launched
from services.transport.link_loops import CAME_NS, add_up
from services.transport.staging import CODES, to_host
from services.transport.wire import DTYPES

if TYPE_CHECKING:
    from services.attention.remote_pool import RemotePool

ROOMS_KEPT = 32


class DirectLayer:
    """Rows that are away; made by `launch`."""

    def __init__(
        self,
        pool: "RemotePool",
        link: DirectLink,
        launched: Launched,
        layer: int,
        x: torch.Tensor,
        ids: NDArray[np.int32],
        room: tuple[Rows, NDArray[np.uint8]],
    ) -> None:
        """room: see `_room`."""
        self._pool, self._link, self._launched = pool, link, launched
        self._layer, self._x, self._ids = layer, x, ids
        self._answers, self._as_bytes = room
        self._seen = link.seen
        self._has_landed = False
        self._long_way: LayerStep | None = None
        if launched.n_sent < launched.n_messages:
            self.long_way()

    @property
    def chosen_s(self) -> float:
        """perf_counter, between choosing and sending."""
        return self._launched.chosen_s

    def finish(self) -> Rows:
        """See `LayerStep.finish`. What is returned is used again for a layer of as many pairs."""
        if self._long_way is None:
            until_s = self.chosen_s + self._pool.settings.reply_timeout_s
            if self._link.land(self._launched, self._as_bytes, until_s=until_s):
                self._seen, self._has_landed = self._link.seen.copy(), True
                return self._answers
        return self.long_way().finish()

    def long_way(self) -> LayerStep:
        """The same layer, with what has been sent and answered so far."""
        if self._long_way is not None:
            return self._long_way
        launched, shards = self._launched, self._link.shards
        exchange = self._pool.exchange(self._layer, self._ids)
        step = LayerStep(
            self._pool,
            exchange,
            self._layer,
            to_host(self._x),
            self._x.device,
            answers=self._answers,
        )
        self._long_way = step
        sends = tuple(
            SendRows(launched.number + i, shards[rows.shard].shard_id, rows)
            for i, rows in enumerate(cut(launched.plan, self._ids.size))
        )
        exchange.go_on(sends)
        step.was_sent(sends[: launched.n_sent], at_s=self.chosen_s)
        for send in sends[: launched.n_sent]:
            came_ns, waited_us, computed_us = self._seen[send.rows.shard, CAME_NS:].tolist()
            if came_ns:
                rows = self._answers[send.rows.pair_positions]
                step.take(send.shard_id, RowsAnswer(send.number, rows, waited_us, computed_us))
        step.send(sends[launched.n_sent :], sent=launched.bytes_sent)
        if self._has_landed:
            step.finish()
        return step

    def account(self, n_shards: int) -> tuple[NDArray[np.float64], tuple[float, float]]:
        """See `LayerStep.account`; also counts the traffic."""
        if self._long_way is not None:
            return self._long_way.account(n_shards)
        launched, n_pairs, row_bytes = self._launched, self._ids.size, self._as_bytes.shape[1]
        times, traffic = np.empty((2, n_shards)), self._pool.traffic
        n_tokens, row_s, queued_s, computed_s = add_up(
            launched.plan, n_pairs, self._seen, launched.chosen_s, times
        )
        traffic.sends += launched.n_messages
        traffic.rows_sent += n_tokens
        traffic.bytes_sent += n_tokens * row_bytes
        traffic.rows_returned += n_pairs
        traffic.bytes_returned += n_pairs * row_bytes
        traffic.row_s += row_s
        return times, (queued_s, computed_s)


def launch(
    pool: "RemotePool", layer: int, x: torch.Tensor, ids: NDArray[np.int32], table: ReplicaTable
) -> DirectLayer | None:
    """Send the rows of x [T, H]; None if they must go the long way, and none has gone.

    Which is so while a shard is known to be away, and where more than rows is to be sent.
    """
    if pool.dead or pool.turns.is_split or pool.steps.is_followed:
        return None
    link = pool.link.direct(table.shards)
    code = CODES.get(x.dtype)
    if link is None or code is None or not (ids.size and x.is_cpu and x.is_contiguous()):
        return None
    hidden = x.shape[1]
    launched = link.launch(
        layer,
        ids,
        x.data_ptr(),
        hidden=hidden,
        row_bytes=hidden * x.itemsize,
        dtype=code,
        table=table,
        load=pool.service_times.load(),
        policy=pool.settings.policy,
        numbers=pool.numbers,
    )
    if launched is None:
        return None
    return DirectLayer(pool, link, launched, layer, x, ids, _room(ids.size, hidden, code))


@lru_cache(ROOMS_KEPT)
def _room(n_pairs: int, hidden: int, dtype: int) -> tuple[Rows, NDArray[np.uint8]]:
    """[P, H] and the same as bytes, which one layer after the other is answered into."""
    rows = np.empty((n_pairs, hidden), DTYPES[dtype])
    return rows, rows.view(np.uint8)

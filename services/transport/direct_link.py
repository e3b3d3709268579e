"""A layer's rows to the shards of this host and back, in two calls of compiled code.

Each call of Python takes several times as long as usual while caches are full of weights, and a
layer's way through `exchange`, `wire` and `stream` has hundreds (DECISIONS.md). This is the way of
layers that meet nothing unusual. At the first thing that is, it stops, and the long way goes on
from there: nothing is decided here but which shard gets what.
"""

from collections.abc import Sequence
from select import POLLIN
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.choose import CODES, Policy
from router.dispatch import plan_room
from router.exchange import SendNumbers
from router.table import ReplicaTable, ShardAddress
from services.transport import libc, link_loops
from services.transport.link_loops import GOT, NO_HOLDER
from services.transport.stream import Stream
from services.transport.wire import HEAD
from services.transport.words import N_WORDS

MOST_BYTES = 1 << 20  # of a message; the way of larger ones takes a small part of their time


class Launched(NamedTuple):
    """Rows of one layer that are away. plan: see `router.dispatch`."""

    plan: NDArray[np.int32]
    number: int  # of the first message
    n_sent: int  # messages, in the order of the shards
    n_messages: int
    bytes_sent: int  # of the first that is not sent in full
    chosen_s: float  # perf_counter, before the first was sent


class DirectLink:
    """Connections to all shards of one table, and what has come through them of one layer."""

    def __init__(self, shards: Sequence[ShardAddress], streams: Sequence[Stream]) -> None:
        """shards: the table's own; streams: to each of them."""
        count = len(shards)
        self.shards, self.streams = shards, streams
        files = [(stream.socket.fileno(), POLLIN) for stream in streams]
        self._most_bytes = min([MOST_BYTES, *(stream.at_once for stream in streams)])
        self._polled = np.array(files, np.int32).reshape(-1, 2)
        self._heads = np.zeros((count, N_WORDS), np.int32)  # of what was sent last; no pairs: none
        self._rooms = np.empty((count + 1, MOST_BYTES), np.uint8)  # answers; rows to be sent
        self.seen = np.zeros((count, 4), np.int64)
        """[S]: bytes of an answer; when all of it had come, 0 for not yet; what it says it took."""
        self._told, self._parts = np.zeros(3, np.int64), np.zeros((4, 2), np.int64)

    def launch(
        self,
        layer: int,
        ids: NDArray[np.int32],
        rows_at: int,
        *,
        hidden: int,
        row_bytes: int,
        dtype: int,
        table: ReplicaTable,
        load: NDArray[np.float32],
        policy: Policy,
        numbers: SendNumbers,
    ) -> Launched | None:
        """Choose a shard for every pair of ids [T, K], and send each its rows.

        rows_at: address of [T, H], contiguous; dtype: its place in `wire.DTYPES`. None: an
        expert has no holder or a message may be too large; nothing is sent.
        """
        if HEAD.size + ids.size * (row_bytes + 8) > self._most_bytes:
            return None
        plan, told = plan_room(ids.size, len(self.shards)), self._told
        n_sent = link_loops.launch(
            self._polled,
            self._heads,
            self._rooms,
            self.seen,
            told,
            self._parts,
            plan,
            ids,
            table.holders,
            table.counts,
            load,
            CODES[policy],
            rows_at,
            row_bytes,
            hidden,
            dtype,
            layer,
            numbers.last + 1,
        )
        if n_sent == NO_HOLDER:
            return None
        n_messages, bytes_sent, chosen_ns = told.tolist()
        number = numbers.take(n_messages)
        return Launched(plan, number, n_sent, n_messages, bytes_sent, chosen_ns / libc.NS)

    def land(self, launched: Launched, answers: NDArray[np.uint8], *, until_s: float) -> bool:
        """Wait for all answers and put their rows into `answers` [T * K, bytes of a row].

        False: something else has come, or too little until then by perf_counter; `seen` and
        `leave` tell what.
        """
        return link_loops.land(
            self._polled,
            self._heads,
            self._rooms,
            self.seen,
            launched.plan,
            answers,
            launched.n_messages,
            round(until_s * libc.NS),
        )

    def leave(self) -> list[int]:
        """Give the streams what has come of answers that are not whole; which of them got any."""
        left: list[int] = np.flatnonzero(self.seen[:, GOT]).tolist()
        for shard in left:
            self.streams[shard].unread(self._rooms[shard, : self.seen[shard, GOT]])
        self.seen[:, GOT] = 0
        return left


def warm_up() -> None:
    """Compile the loops, for tables, which are read-only."""
    holders, counts = np.zeros((1, 1, 1), np.int16), np.zeros((1, 1), np.int16)
    for array in (holders, counts):
        array.setflags(write=False)
    table, link = ReplicaTable(0, (), holders, counts), DirectLink((), ())
    no_load, ids, numbers = np.zeros(0, np.float32), np.zeros((1, 1), np.int32), SendNumbers()
    launched = link.launch(
        0,
        ids,
        0,
        hidden=0,
        row_bytes=0,
        dtype=0,
        table=table,
        load=no_load,
        policy=Policy.LEAST_TOKENS,
        numbers=numbers,
    )
    assert launched is None  # no shard holds the expert
    nothing = Launched(plan_room(0, 0), 0, 0, 0, 0, 0.0)
    link.land(nothing, np.zeros((0, 1), np.uint8), until_s=0.0)
    link_loops.add_up(nothing.plan, 0, link.seen, 0.0, np.empty((2, 0)))

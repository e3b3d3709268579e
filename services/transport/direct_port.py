"""A shard's side of `direct_link`: one compiled call takes the next batch in, another answers it.

What is not a plain request for rows that this shard holds is left where it is, and the long way
takes it from there.
"""

import socket
from collections.abc import Callable, Sequence
from select import POLLIN

import numpy as np
import torch
from numpy.typing import NDArray

from router.jit import jit
from router.rows import as_array
from router.slots import find_slots
from services.transport import libc
from services.transport.base import RowsAnswer, RowsRefusal
from services.transport.direct_link import MOST_BYTES
from services.transport.staging import CODES
from services.transport.stream import Stream
from services.transport.wire import ANSWER, REQUEST
from services.transport.words import (
    FIRST_TIME,
    HIDDEN,
    KINDS,
    MAGIC_WORD,
    MARKS,
    N_WORDS,
    PAIRS,
    TOKENS,
    head_of,
    kinds_of,
    layer_of,
    number_of,
    put_head,
)
from services.transport.words import NUMBER as NUMBER_WORD

STREAM, NUMBER, N_PAIRS, BUSY, ARRIVED_NS, LAYER = range(6)
LONG_WAY = -1
Answer = Callable[[Stream, RowsAnswer | RowsRefusal, int], None]


class DirectPort:
    """Connections of all attention replicas, and the batch that was taken from them last."""

    def __init__(self, others: Sequence[int], streams: Sequence[Stream], answer: Answer) -> None:
        """others: files that wake it and are none of its own; answer: the long way."""
        count = len(streams)
        self.streams, self._answer = streams, answer
        files = [stream.socket.fileno() for stream in streams]
        self._polled = np.array([(file, POLLIN) for file in (*files, *others)], np.int32)
        self._rooms = np.empty((count, MOST_BYTES), np.uint8)
        self._got = np.zeros((count, 2), np.int64)  # bytes; when they had come
        self._asked = np.zeros((count, 6), np.int64)  # of the batch, request by request
        self._head, self._parts = np.zeros(N_WORDS, np.int32), np.zeros((2, 2), np.int64)

    def take(
        self,
        rows: NDArray[np.uint8],
        slots: NDArray[np.int32],
        slot_of: NDArray[np.int32],
        *,
        hidden: int,
        dtype: int,
        timeout_s: float,
    ) -> list[list[int]] | None:
        """Wait for requests and put rows and slots of all of one layer's there, pair by pair.

        rows: [P, bytes of a row] and slots [P] have room for a batch; slot_of: [L, E], -1 for
        experts that are not here. hidden, dtype: what the shard computes, see `wire.DTYPES`.
        Returns of each request what the names above say; [] after `timeout_s`; None if the long
        way must be taken.
        """
        count = _take(
            self._polled,
            self._rooms,
            self._got,
            self._asked,
            slot_of,
            rows,
            slots,
            hidden,
            dtype,
            round(timeout_s * 1000),
        )
        return None if count < 0 else self._asked[:count].tolist()

    def answer(
        self,
        asked: Sequence[Sequence[int]],
        rows: torch.Tensor,
        *,
        started_s: float,
        computed_us: int,
    ) -> None:
        """Send the requests of the last batch rows [P, H] back, contiguous, without waiting."""
        at, (_, hidden), dtype, start = rows.data_ptr(), rows.shape, CODES[rows.dtype], 0
        for place, number, n_pairs, _, arrived_ns, _ in asked:
            stream, n_bytes = self.streams[place], n_pairs * hidden * rows.itemsize
            waited_us = max(0, round(started_s * 1e6 - arrived_ns * 1e-3))
            sent = _answer(
                stream.socket.fileno(),
                self._head,
                self._parts,
                at,
                n_bytes,
                hidden,
                n_pairs,
                dtype,
                number,
                waited_us,
                computed_us,
            )
            if sent < 4 * N_WORDS + n_bytes:
                answer = as_array(rows[start : start + n_pairs])
                self._answer(
                    stream, RowsAnswer(number, answer, waited_us, computed_us), max(0, sent)
                )
            at, start = at + n_bytes, start + n_pairs

    def refuse(self, asked: Sequence[Sequence[int]], reason: str) -> None:
        """Tell the requests of the last batch that they are not computed."""
        for request in asked:
            self._answer(self.streams[request[STREAM]], RowsRefusal(request[NUMBER], reason), 0)

    def leave(self) -> list[Stream]:
        """Give the streams all that was read and not taken; which of them got any."""
        left = np.flatnonzero(self._got[:, 0]).tolist()
        for place in left:
            self.streams[place].unread(self._rooms[place, : self._got[place, 0]])
        self._got[:] = 0
        return [self.streams[place] for place in left]


def warm_up() -> None:
    """Compile the loops."""
    with socket.socket(socket.AF_UNIX) as unconnected:
        port = DirectPort((), [Stream(unconnected)], lambda stream, answer, sent: None)
        no_slots = np.zeros((1, 1), np.int32)
        none = np.zeros(0, np.int32)
        port.take(np.zeros((0, 1), np.uint8), none, no_slots, hidden=0, dtype=0, timeout_s=0.0)
        port.answer([[0] * 6], torch.zeros(0, 1), started_s=0.0, computed_us=0)


@jit
def _take(
    polled: NDArray[np.int32],
    rooms: NDArray[np.uint8],
    got: NDArray[np.int64],
    asked: NDArray[np.int64],
    slot_of: NDArray[np.int32],
    rows: NDArray[np.uint8],
    slots: NDArray[np.int32],
    hidden: int,
    dtype: int,
    timeout_ms: int,
) -> int:
    """How many requests were taken; LONG_WAY."""
    n_streams, clock = rooms.shape[0], np.empty(2, np.int64)
    while True:
        first = -1
        for place in range(n_streams):
            size = _size(rooms[place], got[place, 0], slot_of.shape[0], rows, hidden, dtype)
            if size < 0:
                return LONG_WAY
            if size and (first < 0 or got[place, 1] < got[first, 1]):
                first = place
        if first >= 0:
            return _take_layer(first, rooms, got, asked, slot_of, rows, slots, hidden, dtype)
        ready = libc.poll(libc.address(polled), polled.shape[0], np.int32(timeout_ms))
        if ready < 1:
            return ready
        for place in range(polled.shape[0]):
            events = polled[place, 1] >> 16
            if not events:
                continue
            if place >= n_streams or events != POLLIN:
                return LONG_WAY
            at, had = libc.address(rooms[place]), got[place, 0]
            count = libc.read(polled[place, 0], at + had, MOST_BYTES - had)
            if count < 1:
                return LONG_WAY
            got[place] = had + count, libc.clock_ns(clock)


@jit
def _size(
    room: NDArray[np.uint8],
    got: int,
    n_layers: int,
    rows: NDArray[np.uint8],
    hidden: int,
    dtype: int,
) -> int:
    """Bytes of the request that a room begins with, 0 if it is not whole yet; LONG_WAY."""
    if got < 4 * N_WORDS:
        return 0
    head = head_of(room)
    tokens, pairs = int(head[TOKENS]), int(head[PAIRS])
    if (
        head[0] != MAGIC_WORD
        or head[KINDS] & 0xFFFF != kinds_of(REQUEST, dtype, 0)
        or layer_of(head) >= n_layers
        or head[HIDDEN] != hidden
        or head[NUMBER_WORD + 1] < 0  # which no sender counts to, as no more threads than an int32
        or head[FIRST_TIME] < 0
        or head[MARKS:].any()
        or not (0 < tokens <= MOST_BYTES and 0 < pairs <= rows.shape[0])
    ):
        return LONG_WAY
    size = 4 * N_WORDS + tokens * rows.shape[1] + 8 * pairs
    if size > MOST_BYTES:
        return LONG_WAY
    return size if got >= size else 0


@jit
def _take_layer(
    first: int,
    rooms: NDArray[np.uint8],
    got: NDArray[np.int64],
    asked: NDArray[np.int64],
    slot_of: NDArray[np.int32],
    rows: NDArray[np.uint8],
    slots: NDArray[np.int32],
    hidden: int,
    dtype: int,
) -> int:
    """One stream's request, and those of the others for the same layer while there is room."""
    n_streams, row_bytes = rooms.shape[0], rows.shape[1]
    layer = layer_of(head_of(rooms[first]))
    n_asked = n_pairs = 0
    for step in range(n_streams):
        place = (first + step) % n_streams
        room = rooms[place]
        head = head_of(room)
        size = _size(room, got[place, 0], slot_of.shape[0], rows, hidden, dtype)
        pairs, tokens = int(head[PAIRS]), int(head[TOKENS])
        if size <= 0 or layer_of(head) != layer or n_pairs + pairs > rows.shape[0]:
            continue
        pair_rows = room[size - 8 * pairs : size - 4 * pairs].view(np.int32)
        experts = room[size - 4 * pairs : size].view(np.int32)
        if not find_slots(slot_of[layer], experts, pair_rows, tokens, slots[n_pairs:]):
            continue
        start = libc.address(room)
        libc.gather(libc.address(rows[n_pairs:]), start + 4 * N_WORDS, pair_rows, row_bytes)
        of = asked[n_asked]
        of[STREAM], of[NUMBER], of[N_PAIRS] = place, number_of(head), pairs
        of[BUSY], of[ARRIVED_NS], of[LAYER] = head[FIRST_TIME], got[place, 1], layer
        n_asked += 1
        n_pairs += pairs
        got[place, 0] -= size
        libc.memmove(start, start + size, got[place, 0])
    return n_asked if n_asked else LONG_WAY


@jit
def _answer(
    file: int,
    head: NDArray[np.int32],
    parts: NDArray[np.int64],
    rows_at: int,
    n_bytes: int,
    hidden: int,
    pairs: int,
    dtype: int,
    number: int,
    waited_us: int,
    computed_us: int,
) -> int:
    """Bytes that have gone, below 0 for none. parts: [2, 2] of writev's structs."""
    put_head(head, kinds_of(ANSWER, dtype, 0), number, 0, pairs, hidden, waited_us, computed_us)
    parts[0] = libc.address(head), 4 * N_WORDS
    parts[1] = rows_at, n_bytes
    return libc.writev(np.int32(file), libc.address(parts), np.int32(2))

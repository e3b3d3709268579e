"""Compiled loops behind `direct_link`: a layer's messages out, and the answers to them in."""

from select import POLLIN

import numpy as np
from numpy.typing import NDArray

from router.dispatch import choose_and_group
from router.jit import jit
from services.transport import libc
from services.transport.wire import ANSWER, REQUEST
from services.transport.words import (
    FIRST_TIME,
    HIDDEN,
    KINDS,
    MAGIC_WORD,
    N_WORDS,
    NUMBER,
    PAIRS,
    SECOND_TIME,
    head_of,
    kinds_of,
    put_head,
)

GOT, CAME_NS, WAITED_US, COMPUTED_US = range(4)  # what is seen of a shard
NO_HOLDER = -1


@jit
def launch(
    polled: NDArray[np.int32],
    heads: NDArray[np.int32],
    rooms: NDArray[np.uint8],
    seen: NDArray[np.int64],
    told: NDArray[np.int64],
    parts: NDArray[np.int64],
    plan: NDArray[np.int32],
    ids: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    load: NDArray[np.float32],
    policy: int,
    rows_at: int,
    row_bytes: int,
    hidden: int,
    dtype: int,
    layer: int,
    number: int,
) -> int:
    """Choose, and send until a message does not go in full; returns how many have, or NO_HOLDER.

    polled: [S, 2] of poll's structs. heads: [S, 16] to be filled with what is sent, no pairs: none.
    rooms: [S + 1, B], the last one free. seen: [S, 4] to be cleared. told: [3] to be filled:
    messages, bytes sent of the one that did not go, ns when all was chosen. parts: [4, 2] of
    writev's structs. Others: `DirectLink`.
    """
    if not choose_and_group(ids, holders[layer], counts[layer], load, policy, plan):
        return NO_HOLDER
    told[2] = libc.clock_ns(told)
    n_shards, n_pairs, n_tokens = polled.shape[0], ids.size, ids.shape[0]
    ends = plan[4 * n_pairs :].reshape(2, -1)
    kinds = kinds_of(REQUEST, dtype, layer)
    scratch = libc.address(rooms[n_shards:])
    heads[:, PAIRS] = 0
    seen[:] = 0
    n_messages = n_sent = bytes_sent = 0
    for shard in range(n_shards):
        first, pairs = ends[0, shard], ends[0, shard + 1] - ends[0, shard]
        if not pairs:
            continue
        tokens, head = ends[1, shard + 1] - ends[1, shard], heads[shard]
        put_head(head, kinds, number + n_messages, tokens, pairs, hidden, 0, 0)
        n_messages += 1
        if n_sent < n_messages - 1:
            continue
        at = rows_at
        if tokens < n_tokens:
            at = scratch
            sent_rows = plan[ends[1, shard] : ends[1, shard + 1]]
            libc.gather(scratch, rows_at, sent_rows, row_bytes)
        parts[0] = libc.address(head), 4 * N_WORDS
        parts[1] = at, tokens * row_bytes
        parts[2] = libc.address(plan[n_pairs + first :]), 4 * pairs
        parts[3] = libc.address(plan[2 * n_pairs + first :]), 4 * pairs
        sent = libc.writev(polled[shard, 0], libc.address(parts), np.int32(4))
        if sent == parts[:, 1].sum():
            n_sent += 1
        else:
            bytes_sent = max(sent, 0)
    told[0], told[1] = n_messages, bytes_sent
    return n_sent


@jit
def land(
    polled: NDArray[np.int32],
    heads: NDArray[np.int32],
    rooms: NDArray[np.uint8],
    seen: NDArray[np.int64],
    plan: NDArray[np.int32],
    answers: NDArray[np.uint8],
    n_left: int,
    end_ns: int,
) -> bool:
    """Fill answers and `seen` until none of the `n_left` is away; False: see `DirectLink`."""
    n_shards, n_pairs, row_bytes = polled.shape[0], answers.shape[0], answers.shape[1]
    positions, ends = plan[3 * n_pairs : 4 * n_pairs], plan[4 * n_pairs :]
    clock = np.empty(2, np.int64)
    to, head_bytes = libc.address(answers), 4 * N_WORDS
    while n_left:
        left_ms = max(0, (end_ns - libc.clock_ns(clock)) // 1_000_000)
        if libc.poll(libc.address(polled), n_shards, np.int32(left_ms)) < 1:
            return False
        for shard in range(n_shards):
            events, sent = polled[shard, 1] >> 16, heads[shard]
            if not events:
                continue
            if events != POLLIN or not sent[PAIRS] or seen[shard, CAME_NS]:
                return False
            room, size = rooms[shard], head_bytes + sent[PAIRS] * row_bytes
            at, got = libc.address(room), seen[shard, GOT]
            count = libc.read(polled[shard, 0], at + got, size - got)
            if count < 1:
                return False
            got += count
            seen[shard, GOT] = got
            head = head_of(room)
            if got >= head_bytes and not _answers(head, sent):
                return False
            if got < size:
                continue
            at += head_bytes
            for place in positions[ends[shard] : ends[shard + 1]]:
                libc.memcpy(to + place * row_bytes, at, row_bytes)
                at += row_bytes
            seen[shard, GOT], seen[shard, CAME_NS] = 0, libc.clock_ns(clock)
            seen[shard, WAITED_US], seen[shard, COMPUTED_US] = head[FIRST_TIME], head[SECOND_TIME]
            n_left -= 1
            if not n_left:  # whatever else there is, the next layer meets it
                return True
    return True


@jit
def _answers(head: NDArray[np.int32], sent: NDArray[np.int32]) -> bool:
    """Whether it is an answer to what was sent, of the size that it must have."""
    return bool(
        head[0] == MAGIC_WORD
        and head[KINDS] == kinds_of(ANSWER, sent[KINDS] >> 8 & 0xFF, 0)
        and head[NUMBER] == sent[NUMBER]
        and head[NUMBER + 1] == sent[NUMBER + 1]
        and head[PAIRS] == sent[PAIRS]
        and head[HIDDEN] == sent[HIDDEN]
    )


@jit
def add_up(
    plan: NDArray[np.int32],
    n_pairs: int,
    seen: NDArray[np.int64],
    sent_s: float,
    times: NDArray[np.float64],
) -> tuple[int, float, float, float]:
    """Of a layer that has landed. times: [2, S] to be filled: seconds a shard took, and its pairs.

    Returns rows sent, rows awaited times the seconds, what the slowest shard queued and computed.
    """
    ends = plan[4 * n_pairs :].reshape(2, -1)
    row_s = queued_s = computed_s = 0.0
    for shard in range(seen.shape[0]):
        pairs = ends[0, shard + 1] - ends[0, shard]
        queued, computed = seen[shard, WAITED_US] * 1e-6, seen[shard, COMPUTED_US] * 1e-6
        times[0, shard], times[1, shard] = queued + computed, pairs
        if pairs:
            row_s += pairs * (seen[shard, CAME_NS] / libc.NS - sent_s)
        if queued + computed > queued_s + computed_s:
            queued_s, computed_s = queued, computed
    return ends[1, -1], row_s, queued_s, computed_s

"""Bytes of the data plane: one header of fixed size, then raw arrays. Little endian.

    request: head, rows [U, H], pair_rows [P] int32, pair_experts [P] int32[, request ids]
    answer:  head, rows [P, H]
    refusal: head, reason (utf-8)

Every part is checked against the header before anything is computed with it.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from router.errors import WireFormatError
from router.rows import Rows
from services.transport.base import RowsAnswer, RowsRefusal, RowsRequest
from services.transport.origin import NOBODY, ids_size, read_origin

# magic, kind, dtype, layer, number, tokens, pairs, hidden, waited_us (of a request: busy_threads),
# computed_us; whose rows these are, see `origin`; what follows it in the same memory is aligned
HEAD: Final = struct.Struct("<4sBBHQIIIII28s")
MAGIC: Final = b"EXM1"
REQUEST, ANSWER, REFUSAL = 1, 2, 3
DTYPES: Final = tuple(map(np.dtype, (np.float32, np.uint16, np.float16)))  # see `router.rows`
MAX_BYTES: Final = 1 << 30

Buffer = bytes | bytearray | memoryview
Message = RowsRequest | RowsAnswer | RowsRefusal


class Head(NamedTuple):
    """What the first part says. sizes: bytes of each part behind it, `size` together."""

    kind: int
    dtype: "np.dtype[Any]"
    layer: int
    number: int
    tokens: int
    pairs: int
    hidden: int
    waited_us: int
    computed_us: int
    marks: bytes
    sizes: tuple[int, ...]
    size: int


def encode(message: Message) -> list[Buffer]:
    """The parts of one multipart message; arrays are not copied."""
    if isinstance(message, RowsRefusal):
        reason = message.reason.encode()
        head = HEAD.pack(MAGIC, REFUSAL, 0, 0, message.number, len(reason), 0, 0, 0, 0, NOBODY)
        return [head, reason]
    rows = np.ascontiguousarray(message.rows)
    dtype, hidden = DTYPES.index(rows.dtype), rows.shape[1]
    if isinstance(message, RowsAnswer):
        counts = (0, rows.shape[0], hidden, message.waited_us, message.computed_us)
        return [HEAD.pack(MAGIC, ANSWER, dtype, 0, message.number, *counts, NOBODY), rows.data]
    n_pairs = message.pair_rows.shape[0]
    counts = (rows.shape[0], n_pairs, hidden, message.busy_threads, 0)
    marks = NOBODY if message.origin is None else message.origin.marks()
    head = HEAD.pack(MAGIC, REQUEST, dtype, message.layer, message.number, *counts, marks)
    parts: list[Buffer] = [head, rows.data, message.pair_rows.data, message.pair_experts.data]
    if message.origin is not None and (ids := message.origin.part()):
        parts.append(ids)
    return parts


def n_bytes(parts: Sequence[Buffer]) -> int:
    """Of all of them."""
    return sum([memoryview(part).nbytes for part in parts])


def read_head(part: Buffer) -> Head:
    """The beginning of `part`. Raises WireFormatError."""
    magic, kind, dtype, layer, number, tokens, pairs, hidden, waited, computed, marks = (
        HEAD.unpack_from(part)
    )
    if magic != MAGIC:
        raise WireFormatError(f"message begins with {magic!r}, expected {MAGIC!r}")
    if dtype >= len(DTYPES):
        raise WireFormatError(f"message {number} has dtype code {dtype}, known: {len(DTYPES)}")
    row = hidden * DTYPES[dtype].itemsize
    sizes: tuple[int, ...] = ()
    if kind == REQUEST:
        sizes = (tokens * row, 4 * pairs, 4 * pairs)
        if named := ids_size(marks, number):
            sizes += (named,)
    elif kind == ANSWER:
        sizes = (pairs * row,)
    elif kind == REFUSAL:
        sizes = (tokens,)
    size = sum(sizes)
    if not sizes or size > MAX_BYTES:
        raise WireFormatError(
            f"message {number} of kind {kind} has {size} bytes, the limit is {MAX_BYTES}"
        )
    counts = (tokens, pairs, hidden, waited, computed)
    return Head(kind, DTYPES[dtype], layer, number, *counts, marks, sizes, size)


def decode(parts: Sequence[Buffer]) -> Message:
    """The message in `parts`; its arrays share their memory. Raises WireFormatError."""
    got = n_bytes(parts[:1])
    if got != HEAD.size:
        raise WireFormatError(f"message header of {got} bytes, expected {HEAD.size}")
    head, behind = read_head(parts[0]), parts[1:]
    if len(behind) != len(head.sizes):
        raise WireFormatError(
            f"message {head.number} of kind {head.kind} has {len(parts)} parts, expected "
            f"{1 + len(head.sizes)}"
        )
    for part, size in zip(behind, head.sizes, strict=True):
        if (got := n_bytes([part])) != size:
            raise WireFormatError(
                f"message {head.number}: a part has {got} bytes, its header says {size}"
            )
    return message_of(head, behind)


def message_of(head: Head, behind: Sequence[Buffer]) -> Message:
    """behind: the parts after the head, as long as it says."""
    if head.kind == ANSWER:
        rows = _rows(behind[0], head, head.pairs)
        return RowsAnswer(head.number, rows, head.waited_us, head.computed_us)
    if head.kind == REQUEST:
        rows = _rows(behind[0], head, head.tokens)
        places, experts = (np.frombuffer(part, np.int32) for part in behind[1:3])
        origin = read_origin(head.marks, bytes(behind[3]) if len(behind) > 3 else b"")
        return RowsRequest(
            head.number, head.layer, rows, places, experts, origin, busy_threads=head.waited_us
        )
    return RowsRefusal(head.number, bytes(behind[0]).decode(errors="replace"))


def _rows(part: Buffer, head: Head, count: int) -> Rows:
    return np.frombuffer(part, head.dtype).reshape(count, head.hidden)

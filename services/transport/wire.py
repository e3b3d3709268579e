"""Bytes of the data plane: one header of fixed size, then raw arrays. Little endian.

    request: head, rows [U, H], pair_rows [P] int32, pair_experts [P] int32[, request ids]
    answer:  head, rows [P, H]
    refusal: head, reason (utf-8)

Every part is checked against the header before anything is computed with it.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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


def encode(message: RowsRequest | RowsAnswer | RowsRefusal) -> list[Buffer]:
    """The parts of one multipart message; arrays are viewed, not copied."""
    if isinstance(message, RowsRefusal):
        reason = message.reason.encode()
        head = HEAD.pack(MAGIC, REFUSAL, 0, 0, message.number, len(reason), 0, 0, 0, 0, NOBODY)
        return [head, reason]
    rows = message.rows
    dtype, hidden = DTYPES.index(rows.dtype), rows.shape[1]
    if isinstance(message, RowsAnswer):
        counts = (0, rows.shape[0], hidden, message.waited_us, message.computed_us)
        head = HEAD.pack(MAGIC, ANSWER, dtype, 0, message.number, *counts, NOBODY)
        return [head, _view(rows)]
    n_pairs = message.pair_rows.shape[0]
    counts = (rows.shape[0], n_pairs, hidden, message.busy_threads, 0)
    marks = NOBODY if message.origin is None else message.origin.marks()
    head = HEAD.pack(MAGIC, REQUEST, dtype, message.layer, message.number, *counts, marks)
    parts = [head, _view(rows), message.pair_rows.data, message.pair_experts.data]
    if message.origin is not None and (ids := message.origin.part()):
        parts.append(ids)
    return parts


def part_sizes(head: Buffer) -> tuple[int, ...]:
    """Bytes of each part that follows this head in a stream. Raises WireFormatError."""
    magic, kind, dtype, _, number, tokens, pairs, hidden, _, _, marks = HEAD.unpack(head)
    if magic != MAGIC or dtype >= len(DTYPES):
        raise WireFormatError(f"message begins with {magic!r}, dtype code {dtype}")
    row = hidden * DTYPES[dtype].itemsize
    sizes: tuple[int, ...] = ()
    if kind == REQUEST:
        sizes = (tokens * row, 4 * pairs, 4 * pairs)
        if size := ids_size(marks, number):
            sizes += (size,)
    elif kind == ANSWER:
        sizes = (pairs * row,)
    elif kind == REFUSAL:
        sizes = (tokens,)
    if not sizes or sum(sizes) > MAX_BYTES:
        raise WireFormatError(
            f"message {number} of kind {kind} has {sum(sizes)} bytes, the limit is {MAX_BYTES}"
        )
    return sizes


def decode(parts: Sequence[Buffer]) -> RowsRequest | RowsAnswer | RowsRefusal:
    """The message in `parts`; its arrays share their memory. Raises WireFormatError."""
    if not parts or len(parts[0]) != HEAD.size:
        got = len(parts[0]) if parts else 0
        raise WireFormatError(f"message header of {got} bytes, expected {HEAD.size}")
    magic, kind, dtype, layer, number, tokens, pairs, hidden, waited, computed, marks = HEAD.unpack(
        parts[0]
    )
    if magic != MAGIC:
        raise WireFormatError(f"message begins with {magic!r}, expected {MAGIC!r}")
    if kind == REFUSAL and len(parts) == 2:
        return RowsRefusal(number, bytes(parts[1]).decode(errors="replace"))
    if dtype >= len(DTYPES):
        raise WireFormatError(f"message {number} has dtype code {dtype}, known: {len(DTYPES)}")
    if kind == ANSWER and len(parts) == 2:
        rows = _rows(parts[1], DTYPES[dtype], (pairs, hidden), number)
        return RowsAnswer(number, rows, waited, computed)
    if kind == REQUEST and len(parts) == 4 + bool(size := ids_size(marks, number)):
        rows = _rows(parts[1], DTYPES[dtype], (tokens, hidden), number)
        named = bytes(parts[4]) if size else b""
        if len(named) != size:
            raise WireFormatError(
                f"message {number}: a part has {len(named)} bytes, its header says {size}"
            )
        places, experts = _ids(parts[2], pairs, number), _ids(parts[3], pairs, number)
        origin = read_origin(marks, named)
        return RowsRequest(number, layer, rows, places, experts, origin, busy_threads=waited)
    raise WireFormatError(f"message {number} of kind {kind} has {len(parts)} parts")


def _view(rows: Rows) -> Buffer:
    return np.ascontiguousarray(rows).view(np.uint8).data.cast("B") if rows.size else b""


def _ids(part: Buffer, count: int, number: int) -> NDArray[np.int32]:
    if len(part) != 4 * count:
        raise WireFormatError(
            f"message {number}: a part has {len(part)} bytes, its header says {4 * count}"
        )
    return np.frombuffer(part, np.int32)


def _rows(part: Buffer, dtype: "np.dtype[Any]", shape: tuple[int, int], number: int) -> Rows:
    wanted = dtype.itemsize * shape[0] * shape[1]
    if len(part) != wanted:
        raise WireFormatError(
            f"message {number}: a part has {len(part)} bytes, its header says {wanted} "
            f"({list(shape)} {dtype})"
        )
    return np.frombuffer(part, dtype).reshape(shape) if wanted else np.empty(shape, dtype)

"""Whose rows a request holds: what the wire's head and its optional last part say of it.

Sent with the rows of sampled layers only, for logs and traces; nothing is computed from it.
"""

import struct
from dataclasses import dataclass
from typing import Final

from router.errors import WireFormatError

ID_BYTES: Final = 16
MAX_IDS: Final = 64
# in the head: trace id, span id, number of request ids, flags
MARKS: Final = struct.Struct("<16s8sHBx")
NOBODY: Final = bytes(MARKS.size)
HAS_SPAN: Final = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """request_ids: 32 hexadecimal digits each, at most MAX_IDS; further ones are not named.

    trace_id, span_id: of the span that sent the rows; both 0 if there is none.
    """

    request_ids: tuple[str, ...]
    trace_id: int = 0
    span_id: int = 0

    def marks(self) -> bytes:
        """For the head."""
        return MARKS.pack(
            self.trace_id.to_bytes(16, "big"),
            self.span_id.to_bytes(8, "big"),
            len(self.request_ids),
            HAS_SPAN if self.trace_id else 0,
        )

    def part(self) -> bytes:
        """The last part; a message that names no request has none."""
        return bytes.fromhex("".join(self.request_ids))


def ids_size(marks: bytes, number: int) -> int:
    """Bytes of the last part by the marks in a request's head; number: of the message.

    Raises WireFormatError if they contradict each other.
    """
    if marks == NOBODY:
        return 0
    trace, span, n_ids, flags = MARKS.unpack(marks)
    has_span = flags == HAS_SPAN
    if any(trace) is not has_span or any(span) is not has_span:
        raise WireFormatError(f"message {number} has a span and flags {flags}")
    if not has_span and flags:
        raise WireFormatError(f"message {number} has unknown flags {flags}")
    if n_ids > MAX_IDS:
        raise WireFormatError(f"message {number} names {n_ids} requests, the limit is {MAX_IDS}")
    return ID_BYTES * int(n_ids)


def read_origin(marks: bytes, part: bytes) -> Origin | None:
    """What checked marks and the last part say; None: nothing."""
    if marks == NOBODY:
        return None
    trace, span, _, _ = MARKS.unpack(marks)
    ids = part.hex()
    width = 2 * ID_BYTES
    return Origin(
        tuple(ids[start : start + width] for start in range(0, len(ids), width)),
        int.from_bytes(trace, "big"),
        int.from_bytes(span, "big"),
    )

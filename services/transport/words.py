"""The wire's head as compiled loops write and read it: sixteen words. `wire` says what is in it."""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit
from services.transport.wire import HEAD, MAGIC

N_WORDS = HEAD.size // 4
MAGIC_WORD = int.from_bytes(MAGIC, "little")
KINDS, NUMBER, TOKENS, PAIRS, HIDDEN, FIRST_TIME, SECOND_TIME, MARKS = 1, 2, 4, 5, 6, 7, 8, 9
"""Words: kind, dtype and layer in one; a message's number in two; the others as they are."""


@jit
def put_head(
    words: NDArray[np.int32],
    kinds: int,
    number: int,
    tokens: int,
    pairs: int,
    hidden: int,
    first_time: int,
    second_time: int,
) -> None:
    """words: [16] of a message of nobody's. kinds: see `kinds_of`."""
    words[:] = 0
    words[0] = MAGIC_WORD
    words[KINDS] = np.int32(kinds)
    words[NUMBER] = np.int32(number & 0xFFFFFFFF)
    words[NUMBER + 1] = np.int32(number >> 32)
    words[TOKENS] = tokens
    words[PAIRS] = pairs
    words[HIDDEN] = hidden
    words[FIRST_TIME] = first_time
    words[SECOND_TIME] = second_time


@jit
def kinds_of(kind: int, dtype: int, layer: int) -> int:
    """The word of all three. dtype: its place in `wire.DTYPES`."""
    return kind | dtype << 8 | layer << 16


@jit
def number_of(words: NDArray[np.int32]) -> int:
    """Of a message."""
    return int(np.int64(words[NUMBER + 1]) << 32 | np.int64(words[NUMBER]) & 0xFFFFFFFF)


@jit
def layer_of(words: NDArray[np.int32]) -> int:
    """Of a request."""
    return int(words[KINDS] >> 16 & 0xFFFF)


@jit
def head_of(room: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The words that a message begins with."""
    return room[: 4 * N_WORDS].view(np.int32)

"""Where a shard puts the rows of batches that come the short way."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from router.rows import Rows
from services.transport.direct_port import DirectPort
from services.transport.staging import PairRoom
from services.transport.wire import DTYPES

MOST_PAIRS = 1024  # of a batch
SIZES_KEPT = 32  # as decoding repeats few


class DirectRoom:
    """For rows of one kind, batch after batch; the answers to one are sent before the next."""

    def __init__(self, like: Rows, device: torch.device) -> None:
        self._kind = like.dtype, like.shape[1]
        room = PairRoom(MOST_PAIRS, like.shape[1], like.dtype, device)
        self._as_bytes, self._slots = room.rows.view(np.uint8), room.slots
        self.on_device = lru_cache(SIZES_KEPT)(room.on_device)

    def is_for(self, rows: Rows) -> bool:
        """Whether rows are of its kind."""
        return self._kind == (rows.dtype, rows.shape[1])

    def take(
        self, direct: DirectPort, slot_of: NDArray[np.int32], *, timeout_s: float
    ) -> list[list[int]] | None:
        """See `DirectPort.take`."""
        return direct.take(
            self._as_bytes,
            self._slots,
            slot_of,
            hidden=self._kind[1],
            dtype=DTYPES.index(self._kind[0]),
            timeout_s=timeout_s,
        )

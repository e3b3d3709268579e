"""The transport seam: rows go out to shards, rows come back; who carries them is not our matter.

An attention replica holds a `ShardLink`, a shard holds a `RowPort`. Rows are arrays on the host
here, see `router.rows`: the callers stage them from and to their devices. Implementations:
`inprocess`, and `sockets` with `unix` and `zeromq`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from router.rows import Rows
from router.table import ShardAddress, ShardId
from services.transport.origin import Origin

if TYPE_CHECKING:
    from services.transport.direct_link import DirectLink
    from services.transport.direct_port import DirectPort


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Rows for one layer of one shard.

    rows: [U, H]; each token once.
    pair_rows: [P] int32; index into `rows` of each (token, choice) pair.
    pair_experts: [P] int32; the logical expert of each pair.
    origin: whose rows these are; None where that is not followed.
    busy_threads: that the sender computes with meanwhile on the shard's cores, per shard there.
    """

    number: int
    layer: int
    rows: Rows
    pair_rows: NDArray[np.int32]
    pair_experts: NDArray[np.int32]
    origin: Origin | None = None
    busy_threads: int = 0


@dataclass(frozen=True, slots=True)
class RowsAnswer:
    """One row per pair, in the order of the request.

    rows: [P, H] of the request's dtype.
    waited_us, computed_us: time in the shard's queue and in its kernel.
    """

    number: int
    rows: Rows
    waited_us: int = 0
    computed_us: int = 0


@dataclass(frozen=True, slots=True)
class RowsRefusal:
    """The shard cannot compute this request, for instance because the expert has moved."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Event: something came back from a shard."""

    shard_id: ShardId
    answer: RowsAnswer | RowsRefusal


@dataclass(frozen=True, slots=True)
class ShardLost:
    """Event: the connection to a shard is gone, or (is_wrong) what it says cannot be read."""

    shard_id: ShardId
    reason: str
    is_wrong: bool = False


Event = Answered | ShardLost


class ShardLink(Protocol):
    """The attention side. Used by one thread."""

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        """Be connected to exactly these shards; new ones are added, others are closed."""

    def direct(self, shards: Sequence[ShardAddress]) -> "DirectLink | None":
        """The short way to exactly these shards, a table's own list; None if it is not open now."""

    def send(self, shard_id: ShardId, request: RowsRequest, sent: int = 0) -> None:
        """Send, and do not wait for a shard that does not read.

        sent: bytes of it that have gone the short way. Raises PeerLost if the shard is away or has
        left too much unread.
        """

    def receive(self, timeout_s: float) -> list[Event]:
        """What has come in; waits at most `timeout_s` for the first event."""

    def close(self) -> None:
        """Drop all connections."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A request at a shard and the mark by which its answer finds the way back."""

    peer: bytes
    request: RowsRequest
    arrived_s: float  # monotonic clock


class RowPort(Protocol):
    """The shard side. Used by one thread, but for `wake`."""

    @property
    def address(self) -> ShardAddress:
        """Where attention replicas reach this shard."""

    def direct(self) -> "DirectPort | None":
        """The short way; None if it is not open now."""

    def receive(self, timeout_s: float) -> list[Delivery]:
        """Every request that waits; waits at most `timeout_s` for the first, or for `wake`."""

    def wake(self) -> None:
        """Let `receive` return now, or the next one at once; from any thread."""

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        """Send back without waiting; an answer to a peer that is gone is dropped."""

    def close(self) -> None:
        """Stop listening."""


def reconnect(
    connected: Collection[ShardId],
    shards: Sequence[ShardAddress],
    open_one: Callable[[ShardAddress], None],
    close_one: Callable[[ShardId], None],
) -> None:
    """Have exactly `shards` connected, by opening and closing what differs."""
    wanted = {a.shard_id: a for a in shards}
    for shard_id in [s for s in connected if s not in wanted]:
        close_one(shard_id)
    for shard_id, address in wanted.items():
        if shard_id not in connected:
            open_one(address)

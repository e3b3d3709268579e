"""The transport seam: rows go out to shards, rows come back; who carries them is not our matter.

An attention replica holds a `ShardLink`, a shard holds a `RowPort`. Tensors are on the CPU here:
the callers stage them from and to their devices. Implementations: `inprocess` and `zeromq`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from router.table import ShardAddress, ShardId


@dataclass(frozen=True, slots=True)
class RowsRequest:
    """Rows for one layer of one shard.

    rows: [U, H] float, cpu, contiguous; each token once.
    pair_rows: [P] int32, cpu; index into `rows` of each (token, choice) pair.
    pair_experts: [P] int32, cpu; the logical expert of each pair.
    """

    number: int
    layer: int
    rows: torch.Tensor
    pair_rows: torch.Tensor
    pair_experts: torch.Tensor


@dataclass(frozen=True, slots=True)
class RowsAnswer:
    """One row per pair, in the order of the request.

    rows: [P, H] of the request's dtype, cpu, contiguous.
    waited_us, computed_us: time in the shard's queue and in its kernel.
    """

    number: int
    rows: torch.Tensor
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
    """Event: the connection to a shard is gone, or what it says cannot be read."""

    shard_id: ShardId
    reason: str


Event = Answered | ShardLost


class ShardLink(Protocol):
    """The attention side. Used by one thread."""

    def connect(self, shards: Sequence[ShardAddress]) -> None:
        """Be connected to exactly these shards; new ones are added, others are closed."""

    def send(self, shard_id: ShardId, request: RowsRequest) -> None:
        """Send without waiting. Raises PeerLost if the shard is away or its queue is full."""

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
    """The shard side. Used by one thread."""

    @property
    def address(self) -> ShardAddress:
        """Where attention replicas reach this shard."""

    def receive(self, timeout_s: float) -> list[Delivery]:
        """Every request that waits; waits at most `timeout_s` for the first."""

    def answer(self, delivery: Delivery, answer: RowsAnswer | RowsRefusal) -> None:
        """Send back without waiting; an answer to a peer that is gone is dropped."""

    def close(self) -> None:
        """Stop listening."""

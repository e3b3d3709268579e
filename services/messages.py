"""What shards, attention replicas and the controller tell each other over Ray.

Each side calls the controller and gets its instructions as the answer, so the controller needs
to reach nobody, and whoever is new, or comes back, says by itself what it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.moves import LoadExpert
from router.table import ShardAddress, ShardId


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard says what it holds; it does so every `controller.report_interval_s`.

    held: [L, S] int32, the expert in each slot that can be used now, -1 for none.
    loading: the orders it is working on.
    """

    address: ShardAddress
    n_experts: int
    held: NDArray[np.int32]
    loading: tuple[LoadExpert, ...] = ()
    problem: str = ""  # the last load that failed, in words
    rows: int = 0  # computed since its start
    busy_s: float = 0.0  # in the kernel since its start
    resident_bytes: int = 0
    weight_bytes: int = 0
    read_bytes: int = 0  # taken from the checkpoint since its start


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """An attention replica says which table it uses and what it saw since its last report.

    expert_rows: [L, E] int64, rows that the gate gave to each expert; None for no traffic.
    """

    replica_id: str
    table_version: int
    lost: Mapping[ShardId, str] = field(default_factory=dict)  # shard → why
    expert_rows: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One line of `python -m deploy status`."""

    shard_id: str
    host: str
    state: str
    slots_used: int
    slots_total: int
    loading: int
    held: tuple[tuple[int, ...], ...]  # experts of each layer
    rows: int
    resident_bytes: int
    weight_bytes: int
    read_bytes: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """What the controller knows."""

    table_version: int
    complete: bool
    redundancy: int
    waiting_for: str
    shards: tuple[ShardStatus, ...]
    readers: Mapping[str, int]  # attention replica → table version it uses

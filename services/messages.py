"""What shards, attention replicas and the controller tell each other over Ray.

Each side calls the controller and gets its instructions as the answer, so the controller needs
to reach nobody, and whoever is new, or comes back, says by itself what it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitoring.totals import Account
from router.moves import LoadExpert
from router.planning import ShardPace
from router.table import ReplicaTable, ShardAddress, ShardId


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
    pace: ShardPace = field(default_factory=ShardPace)
    resident_bytes: int = 0
    weight_bytes: int = 0
    read_bytes: int = 0  # taken from the checkpoint since its start
    account: Account | None = None
    is_leaving: bool = False  # it was told to stop, and goes when nobody needs it


@dataclass(frozen=True, slots=True)
class AttentionOrders:
    """The answer to an attention replica's report.

    table: if there is a newer one. wanted_replicas: how many there should be, 0 for no change.
    lost_gateways: whose requests nobody waits for.
    """

    table: ReplicaTable | None = None
    wanted_replicas: int = 0
    lost_gateways: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """An attention replica says which table it uses and what it saw since its last report."""

    replica_id: str
    table_version: int
    lost: Mapping[ShardId, str] = field(default_factory=dict)  # not reached: shard → why
    wrong: Mapping[ShardId, str] = field(default_factory=dict)  # answered nonsense: shard → why
    account: Account | None = None
    is_ready: bool = False  # its engine takes requests


@dataclass(frozen=True, slots=True)
class Use:
    """Totals of one API key at one gateway, or at several. streams: open now."""

    requests: int = 0
    tokens: int = 0
    streams: int = 0

    def __add__(self, other: "Use") -> "Use":
        return Use(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.streams + other.streams,
        )


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """A gateway says what went through it. uses: name of the key → since its start."""

    gateway_id: str
    uses: Mapping[str, Use]
    account: Account
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class GatewayNews:
    """What a gateway is told in return. problem: why requests cannot be answered; empty: they can.

    others: name of the key → what went through all other gateways.
    """

    problem: str = ""
    engines: int = 0
    gateways: int = 1
    others: Mapping[str, Use] = field(default_factory=dict)
    is_closing: bool = False


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
class DecisionStatus:
    """What the controller thought of the last placement that was proposed."""

    age_s: float
    cause: str
    accepted: bool
    reason: str
    moves: int
    imbalance_before: float
    imbalance_after: float


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """What the controller knows.

    imbalance: maximum over mean load of the shards, mean over layers, of the last seconds; None
    without traffic. moves_left: experts that are still to be loaded.
    """

    table_version: int
    complete: bool
    redundancy: int
    waiting_for: str
    shards: tuple[ShardStatus, ...]
    readers: Mapping[str, int]  # attention replica → table version it uses
    imbalance: float | None = None
    moves_left: int = 0
    last_decision: DecisionStatus | None = None
    scaling: tuple[str, ...] = ()  # of each kind that scales: how many are wanted, and why

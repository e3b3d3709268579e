"""Which shard serves each (token, choice) of one layer; step 4 of a token's life.

Reads one layer of the table, masked for shards that this process believes dead. Grouping the
answer into messages is `dispatch`; the compiled loops are in `split`.
"""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from router import split
from router.errors import RoutingError


class Policy(Enum):
    """How rows are spread over the replicas of their expert."""

    LEAST_TOKENS = "least_tokens"  # rows to the lightest holder: least maximum of load
    ONE_REPLICA = "one_replica"  # an expert's rows stay together: fewest weights read
    EVEN_SPLIT = "even_split"  # rows in rotation: needs no load, the usual baseline


CODES = {
    Policy.LEAST_TOKENS: split.LEAST_TOKENS,
    Policy.ONE_REPLICA: split.ONE_REPLICA,
    Policy.EVEN_SPLIT: split.EVEN_SPLIT,
}


def choose_shards(
    expert_ids: NDArray[np.integer],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    load: NDArray[np.float32],
    policy: Policy = Policy.LEAST_TOKENS,
) -> NDArray[np.int16]:
    """Pick one live holder for every (token, choice).

    expert_ids: [T, K] int32 or int64, cpu; logical experts chosen by the gate.
    holders: [E, R] int16; one layer of the table, after `mask_dead`.
    counts: [E] int16; usable holders of each expert.
    load: [S] float32, rows already outstanding on each shard; read, not changed.
    Returns [T, K] int16 shard indices. The same arguments give the same answer.
    Raises RoutingError naming the expert if one that occurs has no holder.

    LEAST_TOKENS minimises the maximum of load + new rows. It pours each expert's rows into its
    lightest holders, single-holder experts first, then pours again until nothing moves: one
    pass alone is greedy, the passes together approach the linear programme's optimum.
    Source: "Linear-Programming-Based Load Balancer", deepseek-ai/LPLB, states the programme;
    solving it by block descent is ours. ONE_REPLICA: policy B3.5, after AEBS (Janus).
    """
    ids = np.ascontiguousarray(expert_ids, dtype=np.int32)
    shards = np.empty(ids.shape, dtype=np.int16)
    bad = split.assign(ids.reshape(-1), holders, counts, load, CODES[policy], shards.reshape(-1))
    if bad >= 0:
        _refuse(int(ids.reshape(-1)[bad]), counts)
    return shards


def _refuse(expert: int, counts: NDArray[np.int16]) -> None:
    if not 0 <= expert < counts.size:
        raise RoutingError(
            f"expert {expert} does not exist: this layer has {counts.size} experts. The gate and "
            "the table come from different checkpoints; restart with one checkpoint."
        )
    raise RoutingError(
        f"expert {expert} has no usable holder in this layer (0, need 1). Wait until the "
        "controller has loaded it on another shard, or raise the redundancy."
    )


def mask_dead(
    holders: NDArray[np.int16], counts: NDArray[np.int16], dead: NDArray[np.bool_]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Drop dead shards from the holders and close the gaps.

    holders: [..., E, R] int16 and counts: [..., E] int16; a layer or the whole table.
    dead: [S] bool. Returns new arrays of the same shapes; the order of the living is kept.
    """
    used = np.arange(holders.shape[-1], dtype=np.int16) < counts[..., None]
    alive = used & ~dead[np.where(used, holders, 0)]
    order = np.argsort(~alive, axis=-1, kind="stable")
    living = np.take_along_axis(np.where(alive, holders, np.int16(-1)), order, axis=-1)
    return np.ascontiguousarray(living), alive.sum(axis=-1, dtype=np.int16)


def warm_up() -> None:
    """Compile the loops, for table arrays that are read-only and for masked copies of them."""
    ids = np.zeros((1, 1), dtype=np.int32)
    load = np.zeros(1, dtype=np.float32)
    for writeable in (False, True):
        holders, counts = np.zeros((1, 1), dtype=np.int16), np.ones(1, dtype=np.int16)
        holders.setflags(write=writeable)
        counts.setflags(write=writeable)
        choose_shards(ids, holders, counts, load)

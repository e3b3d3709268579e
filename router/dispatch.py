"""What each shard is sent for one layer; step 5 of a token's life.

`choose` picks a shard for every (token, choice); here the pairs are grouped into one message a
shard, each token's row once. Turning the plan into bytes is the transport's work, adding up the
answers is `combine`'s.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.choose import CODES, Policy
from router.jit import jit
from router.split import assign


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What one shard must compute: P pairs over U distinct tokens; all arrays int32, cpu."""

    shard: int  # index into the table's shards
    tokens: NDArray[np.int32]  # [U] rows of the hidden states to send, ascending
    pair_rows: NDArray[np.int32]  # [P] index into `tokens`
    pair_experts: NDArray[np.int32]  # [P] logical experts
    pair_positions: NDArray[np.int32]  # [P] t * K + k, the pair's row in the [T * K] answer


def plan_dispatch(
    shards: NDArray[np.int16], expert_ids: NDArray[np.integer]
) -> tuple[ShardRows, ...]:
    """Group every (token, choice) by its shard.

    shards: [T, K] int16, from `choose_shards`; expert_ids: [T, K] int32 or int64.
    Returns one ShardRows for each shard that has pairs, by rising index; pairs by position.
    """
    positions = np.arange(shards.size, dtype=np.int32)
    return plan_pairs(
        positions, shards.reshape(-1), expert_ids.reshape(-1), n_choices=shards.shape[1]
    )


def plan_layer(
    expert_ids: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    load: NDArray[np.float32],
    policy: Policy,
) -> tuple[ShardRows, ...] | None:
    """`choose_shards` and `plan_dispatch` at once; arguments as there, expert_ids contiguous.

    Returns None if an expert that occurs has no holder.
    """
    plan = plan_room(expert_ids.size, load.size)
    if choose_and_group(expert_ids, holders, counts, load, CODES[policy], plan):
        return cut(plan, expert_ids.size)
    return None


def plan_pairs(
    positions: NDArray[np.int32],
    shards_of_positions: NDArray[np.int16],
    expert_ids: NDArray[np.integer],
    *,
    n_choices: int,
) -> tuple[ShardRows, ...]:
    """Group some of a step's pairs, as when they are sent again after a shard died.

    positions: [P] int32, flat t * n_choices + k, distinct, in any order.
    shards_of_positions: [P] int16, the shard that each of them goes to, >= 0.
    expert_ids: [P] int32 or int64, the expert of each of them.
    Returns as `plan_dispatch`; positions still count in the whole step's answer.
    """
    if positions.size == 0:
        return ()
    if (positions[1:] < positions[:-1]).any():
        order = np.argsort(positions)
        positions, expert_ids = positions[order], expert_ids[order]
        shards_of_positions = shards_of_positions[order]
    ids = np.ascontiguousarray(expert_ids, dtype=np.int32)
    n_shards = int(shards_of_positions.max()) + 1
    plan = plan_room(positions.size, n_shards)
    _group(positions, shards_of_positions, ids, n_choices, plan)
    return cut(plan, positions.size)


def plan_room(n_pairs: int, n_shards: int) -> NDArray[np.int32]:
    """For a plan, see `_group`: one array, since each costs as much as all that is done in it."""
    return np.empty(4 * n_pairs + 2 * (n_shards + 1), np.int32)


def cut(plan: NDArray[np.int32], n_pairs: int) -> tuple[ShardRows, ...]:
    """What a plan says, shard by shard."""
    ends = plan[4 * n_pairs :].tolist()
    half = len(ends) // 2
    rows = []
    for shard in range(half - 1):
        start, stop = ends[shard], ends[shard + 1]
        if start < stop:
            sent = plan[ends[half + shard] : ends[half + shard + 1]]
            pairs = (plan[n * n_pairs + start : n * n_pairs + stop] for n in (1, 2, 3))
            rows.append(ShardRows(shard, sent, *pairs))
    return tuple(rows)


def warm_up() -> None:
    """Compile the loops, for table arrays that are read-only and for masked copies of them."""
    ids, load = np.zeros((1, 1), dtype=np.int32), np.zeros(1, dtype=np.float32)
    plan_dispatch(np.zeros((1, 1), dtype=np.int16), ids)
    for writeable in (False, True):
        holders, counts = np.zeros((1, 1), dtype=np.int16), np.ones(1, dtype=np.int16)
        holders.setflags(write=writeable)
        counts.setflags(write=writeable)
        plan_layer(ids, holders, counts, load, Policy.LEAST_TOKENS)


@jit
def choose_and_group(
    expert_ids: NDArray[np.int32],
    holders: NDArray[np.int16],
    counts: NDArray[np.int16],
    load: NDArray[np.float32],
    policy: int,
    plan: NDArray[np.int32],
) -> bool:
    """Fill `plan`; False if an id has no holder."""
    ids = expert_ids.reshape(-1)
    shards = np.empty(ids.size, np.int16)
    if assign(ids, holders, counts, load, policy, shards) >= 0:
        return False
    _group(np.arange(ids.size).astype(np.int32), shards, ids, expert_ids.shape[1], plan)
    return True


@jit
def _group(
    positions: NDArray[np.int32],
    shards: NDArray[np.int16],
    ids: NDArray[np.int32],
    n_choices: int,
    plan: NDArray[np.int32],
) -> None:
    """Counting sort by shard. Pairs stay in order, so equal tokens of a shard are neighbours.

    plan: [4 * P + 2 * (S + 1)]; first packed, [4, P]: tokens, pair rows, experts, positions, shard
    after shard; then ends, [2, S + 1]: shard s owns pairs ends[0, s] to ends[0, s + 1] and tokens
    likewise.
    """
    packed = plan[: 4 * positions.size].reshape(4, -1)
    ends = plan[4 * positions.size :].reshape(2, -1)
    n_shards = ends.shape[1] - 1
    last_token = np.full(n_shards, -1, np.int32)
    ends[:] = 0
    for p in range(positions.size):
        shard = shards[p]
        token = positions[p] // n_choices
        ends[0, shard + 1] += 1
        if token != last_token[shard]:
            ends[1, shard + 1] += 1
            last_token[shard] = token
    for shard in range(n_shards):
        ends[0, shard + 1] += ends[0, shard]
        ends[1, shard + 1] += ends[1, shard]
    next_pair = ends[0, :n_shards].copy()
    next_token = ends[1, :n_shards].copy()
    last_token[:] = -1
    for p in range(positions.size):
        shard = shards[p]
        token = positions[p] // n_choices
        if token != last_token[shard]:
            packed[0, next_token[shard]] = token
            next_token[shard] += 1
            last_token[shard] = token
        pair = next_pair[shard]
        next_pair[shard] += 1
        packed[1, pair] = next_token[shard] - 1 - ends[1, shard]
        packed[2, pair] = ids[p]
        packed[3, pair] = positions[p]

"""Whether another placement is worth its moves.

`placement` proposes, this decides and says why, `moves` carries it out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.choose import Policy
from router.load import max_over_mean, shard_loads
from router.orders import held_experts
from router.table import ShardId, holders_of

_TOLERANCE = 1e-6  # of a load; pouring ends when almost nothing moves
_DEVIATIONS = 2.0
_WORTHWHILE = 0.01  # of the heaviest load; less is no reason to touch a layer

Slots = NDArray[np.int32]
Placement = Mapping[ShardId, Slots]


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict. Imbalance is maximum over mean load of the shards, mean over layers."""

    accepted: bool
    reason: str
    imbalance_before: float
    imbalance_after: float
    n_moves: int


def decide(
    current: Placement,
    proposed: Placement,
    loads: NDArray[np.float64],
    *,
    redundancy: int,
    move_cost_rows: float,
    policy: Policy = Policy.EVEN_SPLIT,
) -> Decision:
    """Accept what repairs redundancy, or lowers the heaviest shards' load by more than it costs.

    current, proposed: [L, S] int32 experts per shard, -1 for an empty slot; a shard that is
        gone is in neither. loads: [L, E] float64, rows over the time that the proposal should
        last.
    redundancy: replicas that every expert should have.
    move_cost_rows: rows that a shard does not serve because it loads one expert; >= 0. What
        counts is the shard with the most moves, since shards load side by side.
    policy: how replicas are chosen, by which the shards' loads are predicted.
    Load never rises on a layer's most loaded shard, unless the proposal repairs.
    """
    copies_before, copies_after = (_copies(p, loads.shape) for p in (current, proposed))
    before, after = (_shard_loads(p, loads, proposed, policy) for p in (current, proposed))
    moves = _moves(current, proposed)
    n_moves = int(moves.sum())
    saved = float((before.max(axis=1) - after.max(axis=1)).sum())
    cost = float(moves.sum(axis=0).max()) * move_cost_rows
    short_before = int((copies_before < redundancy).sum())
    short_after = int((copies_after < redundancy).sum())
    if n_moves == 0:
        accepted, reason = False, "nothing to move"
    elif short_after != short_before:
        accepted = short_after < short_before
        reason = (
            f"{'repairs' if accepted else 'harms'} redundancy {redundancy}: "
            f"{short_before} experts short before, {short_after} after"
        )
    elif (after.max(axis=1) > before.max(axis=1) * (1 + _TOLERANCE)).any():
        worse = int((after.max(axis=1) - before.max(axis=1)).argmax())
        accepted, reason = False, f"the most loaded shard of layer {worse} would get more"
    else:
        accepted = saved > cost
        gain = max(saved, 0.0)  # pouring may end a hair above what it began with
        reason = f"saves {gain:.0f} rows on the most loaded shards, moves cost {cost:.0f}"
    ratios = [float(max_over_mean(per_shard).mean()) for per_shard in (before, after)]
    return Decision(accepted, reason, ratios[0], ratios[1], n_moves)


def improved_layers(
    current: Placement,
    proposed: Placement,
    loads: NDArray[np.float64],
    *,
    redundancy: int,
    move_cost_rows: float = 0.0,
    policy: Policy = Policy.EVEN_SPLIT,
) -> dict[ShardId, Slots]:
    """The proposal, but with the current slots in every layer that it does not make better.

    A layer is better if fewer experts miss redundancy, or as many and its heaviest shard has less:
    by more than that layer's moves cost, and by more than chance makes of so many rows.
    """
    copies = [_copies(p, loads.shape) for p in (current, proposed)]
    short = [(c < redundancy).sum(axis=1) for c in copies]
    before, after = (
        _shard_loads(p, loads, proposed, policy).max(axis=1) for p in (current, proposed)
    )
    cost = _moves(current, proposed).max(axis=1) * move_cost_rows
    chance = _DEVIATIONS * np.sqrt(before)  # rows that come independently
    less = before - after > np.maximum(np.maximum(cost, chance), before * _WORTHWHILE)
    better = (short[1] < short[0]) | ((short[1] == short[0]) & less)
    kept = {}
    for shard_id, slots in proposed.items():
        held = _same_width(current.get(shard_id), slots)
        kept[shard_id] = np.where(better[:, None], slots, held)
    return kept


def _same_width(held: Slots | None, slots: Slots) -> Slots:
    out = np.full_like(slots, -1)
    if held is not None:
        width = min(held.shape[1], slots.shape[1])
        out[:, :width] = held[:, :width]
    return out


def _copies(placement: Placement, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """[L, E] replicas of each expert, on distinct shards."""
    copies = np.zeros(shape, dtype=np.int64)
    for slots in placement.values():
        copies += held_experts(slots, shape[1])
    return copies


def _shard_loads(
    placement: Placement, loads: NDArray[np.float64], shards: Placement, policy: Policy
) -> NDArray[np.float64]:
    """[L, S] load of each of `shards`; the rows of an expert that nobody has wait everywhere."""
    empty = np.zeros(loads.shape, dtype=np.bool_)
    held = np.stack(
        [held_experts(placement[s], loads.shape[1]) if s in placement else empty for s in shards]
    )
    holders, counts = holders_of(held)
    homeless = np.where(counts == 0, loads, 0.0).sum(axis=1)
    placed = shard_loads(loads, holders, counts, n_shards=len(shards), policy=policy)
    per_shard: NDArray[np.float64] = placed + homeless[:, None]
    return per_shard


def _moves(current: Placement, proposed: Placement) -> NDArray[np.int64]:
    """[L, S] experts to load into each shard."""
    columns = []
    for shard_id, slots in proposed.items():
        held = current.get(shard_id)
        new = slots >= 0
        if held is not None:
            new &= ~(slots[:, :, None] == held[:, None, :]).any(axis=2)
        columns.append(new.sum(axis=1))
    return np.stack(columns, axis=1)

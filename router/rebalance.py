"""Whether another placement is worth its moves.

`placement` proposes, this decides and says why, `moves` carries it out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.table import ShardId

Slots = NDArray[np.int32]
Placement = Mapping[ShardId, Slots]


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict. Imbalance is maximum over mean shard load, mean over layers, even split."""

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
) -> Decision:
    """Accept what repairs redundancy, or lowers the heaviest shards' load by more than it costs.

    current, proposed: [L, S] int32 experts per shard, -1 for an empty slot; a shard that is
        gone is in neither. loads: [L, E] float64, rows over the time that the proposal should
        last.
    redundancy: replicas that every expert should have.
    move_cost_rows: rows that a shard does not serve because it loads one expert; >= 0. What
        counts is the shard with the most moves, since shards load side by side.
    Load never rises on a layer's most loaded shard, unless the proposal repairs.
    """
    copies_before, copies_after = (_copies(p, loads.shape) for p in (current, proposed))
    before, after = (
        _shard_loads(p, loads, c, proposed)
        for p, c in ((current, copies_before), (proposed, copies_after))
    )
    n_moves, most_moves = _moves(current, proposed)
    saved = float((before.max(axis=1) - after.max(axis=1)).sum())
    cost = most_moves * move_cost_rows
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
    elif (after.max(axis=1) > before.max(axis=1) * (1 + 1e-9)).any():
        worse = int((after.max(axis=1) - before.max(axis=1)).argmax())
        accepted, reason = False, f"the most loaded shard of layer {worse} would get more"
    else:
        accepted = saved > cost
        reason = f"saves {saved:.0f} rows on the most loaded shards, moves cost {cost:.0f}"
    return Decision(accepted, reason, _ratio(before), _ratio(after), n_moves)


def improved_layers(
    current: Placement, proposed: Placement, loads: NDArray[np.float64], *, redundancy: int
) -> dict[ShardId, Slots]:
    """The proposal, but with the current slots in every layer that it does not make better.

    A layer is better if fewer experts miss redundancy, or as many and its heaviest shard has less.
    """
    copies = [_copies(p, loads.shape) for p in (current, proposed)]
    short = [(c < redundancy).sum(axis=1) for c in copies]
    before, after = (
        _shard_loads(p, loads, c, proposed).max(axis=1)
        for p, c in zip((current, proposed), copies, strict=True)
    )
    better = (short[1] < short[0]) | ((short[1] == short[0]) & (after < before * (1 - 1e-9)))
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
        copies += _held(slots, shape)
    return copies


def _held(slots: Slots, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """[L, E] whether the shard has the expert."""
    held = np.zeros((shape[0], shape[1] + 1), dtype=np.bool_)
    held[np.arange(shape[0])[:, None], slots] = True  # -1 is the last column
    return held[:, :-1]


def _shard_loads(
    placement: Placement,
    loads: NDArray[np.float64],
    copies: NDArray[np.int64],
    shards: Placement,
) -> NDArray[np.float64]:
    """[L, S] load of each of `shards`; the rows of an expert that nobody has wait everywhere."""
    share = loads / np.maximum(copies, 1)
    homeless = np.where(copies == 0, loads, 0.0).sum(axis=1)
    columns = [
        (share * _held(placement[s], loads.shape)).sum(axis=1) + homeless
        if s in placement
        else homeless
        for s in shards
    ]
    return np.stack(columns, axis=1)


def _moves(current: Placement, proposed: Placement) -> tuple[int, int]:
    """Experts to load: in all, and on the shard with most."""
    per_shard = [0]
    for shard_id, slots in proposed.items():
        held = current.get(shard_id)
        new = slots >= 0
        if held is not None:
            new &= ~(slots[:, :, None] == held[:, None, :]).any(axis=2)
        per_shard.append(int(new.sum()))
    return sum(per_shard), max(per_shard)


def _ratio(per_shard: NDArray[np.float64]) -> float:
    mean = per_shard.mean(axis=1)
    ratios = np.where(mean > 0, per_shard.max(axis=1) / np.where(mean > 0, mean, 1.0), 1.0)
    return float(ratios.mean())

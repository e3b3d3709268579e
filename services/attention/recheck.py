"""Answers that are not numbers: the model's own doing, or a shard that computes wrongly?

Another replica decides. If its rows are finite where the first were not, the first shard is
named and left; if they agree, the rows stay as they are.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from router.exchange import SendRows
from router.rows import Rows, as_tensor
from router.table import ShardId

log = logging.getLogger(__name__)

Ask = Callable[[NDArray[np.int32], frozenset[ShardId]], None]
Blame = Callable[[ShardId, str], None]


def recheck(
    answers: Rows, sends: Sequence[SendRows], *, layer: int, ask: Ask, blame: Blame
) -> bool:
    """Put right what another replica answers better; returns whether `answers` has changed.

    answers: [T * K, H], changed in place. sends: who answered which of its rows.
    ask: fetches positions again from shards other than those named, if others hold the expert.
    """
    rows = as_tensor(answers)  # the same memory
    strange = ~torch.isfinite(rows).all(dim=1).numpy()
    changed = False
    for send in sends:
        positions = send.rows.pair_positions[strange[send.rows.pair_positions]]
        if not positions.size:
            continue
        index = torch.from_numpy(positions).long()
        before = rows[index].clone()
        ask(positions, frozenset({send.shard_id}))
        better = torch.isfinite(rows[index]).all(dim=1)
        if better.any():
            blame(
                send.shard_id,
                f"answered {int(better.sum())} rows of layer {layer} with NaN or infinity "
                "where another replica has none",
            )
            changed = True
        else:
            rows[index] = before
            log.debug("rows are not finite on any replica: layer=%s n=%s", layer, positions.size)
    return changed

"""Whether a row's bits depend on the others in a kernel's batch, and how they do not in FP8.

vLLM's FP8 kernel for CPUs computes an expert's rows in blocks, and a block of few rows by another
loop than a fuller one, which adds up in another order. So no block is left with few rows here.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

Run = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
BLOCK_ROWS = 32  # of vLLM 0.32.0's FP8 kernel
FEW_ROWS = 4  # up to which a block has the other loop
SIZES = (1, 2, FEW_ROWS, FEW_ROWS + 1, BLOCK_ROWS + 1)


def filled_up(rows: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """More rows behind these, so that no expert's last block has few.

    rows: [P, H]; slots: [P] int32, on a CPU. What is added is of no interest: the first row again.
    """
    held, counts = np.unique(slots.numpy(), return_counts=True)
    last = counts % BLOCK_ROWS
    lacking = np.where((last > 0) & (last <= FEW_ROWS), FEW_ROWS + 1 - last, 0)
    if not lacking.any():
        return rows, slots
    added = torch.from_numpy(np.repeat(held, lacking))
    return torch.cat([rows, rows[:1].expand(added.shape[0], -1)]), torch.cat([slots, added])


def rows_stand_alone(
    run: Run, tried: Sequence[int], *, hidden_size: int, like: torch.Tensor
) -> bool:
    """Whether a kernel gives random rows the same bits in batches of different sizes.

    run: rows [P, H] of the dtype and device of `like`, slots [P] int32 → rows. tried: the slots.
    """
    generator = torch.Generator().manual_seed(0)
    each = max(SIZES) + FEW_ROWS
    rows = torch.randn(each, len(tried), hidden_size, generator=generator)
    rows = rows.to(like.device, like.dtype)
    slots = torch.tensor(tried, dtype=torch.int32, device=like.device).repeat(each)
    whole = run(rows.flatten(0, 1), slots).view(rows.shape).clone()
    return all(
        torch.equal(run(rows[:n].flatten(0, 1), slots[: n * len(tried)]), whole[:n].flatten(0, 1))
        for n in SIZES
    )

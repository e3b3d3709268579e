"""No expert's last block of rows has few, and the test for that can fail."""

from functools import partial

import numpy as np
import pytest
import torch

from services.experts.lone_rows import BLOCK_ROWS, FEW_ROWS, filled_up, rows_stand_alone


@pytest.mark.parametrize("seed", range(20))
def test_no_block_has_few_rows(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    slots = torch.from_numpy(drawn.integers(0, 5, drawn.integers(1, 200)).astype(np.int32))
    rows = torch.from_numpy(drawn.random((slots.shape[0], 3), np.float32))
    more_rows, more_slots = filled_up(rows, slots)
    assert torch.equal(more_rows[: rows.shape[0]], rows)
    assert torch.equal(more_slots[: slots.shape[0]], slots)
    assert more_rows.shape[0] == more_slots.shape[0]
    assert more_slots.dtype == torch.int32
    counts = np.unique(more_slots.numpy(), return_counts=True)[1]
    assert not ((counts % BLOCK_ROWS > 0) & (counts % BLOCK_ROWS <= FEW_ROWS)).any()
    assert set(more_slots.tolist()) == set(slots.tolist())
    assert more_rows.shape[0] - rows.shape[0] <= FEW_ROWS * len(counts)


def test_full_blocks_are_left_as_they_are() -> None:
    rows, slots = torch.rand(BLOCK_ROWS, 3), torch.zeros(BLOCK_ROWS, dtype=torch.int32)
    assert filled_up(rows, slots)[0] is rows


@pytest.mark.parametrize("few", [0, 1, FEW_ROWS, BLOCK_ROWS])
def test_a_kernel_whose_bits_depend_on_the_batch_is_found(few: int) -> None:
    """It adds something to the rows of a slot's last block if those are up to `few`."""

    def run(rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        out = rows * 2
        for slot in set(slots.tolist()):
            (of_slot,) = torch.nonzero(slots == slot, as_tuple=True)
            last = of_slot.shape[0] % BLOCK_ROWS
            if 0 < last <= few:
                out[of_slot[-last:]] += 1e-6
        return out

    def run_filled_up(rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return run(*filled_up(rows, slots))[: rows.shape[0]]

    stand_alone = partial(rows_stand_alone, tried=[0, 3], hidden_size=8, like=torch.empty(0))
    assert stand_alone(run) == (few == 0)
    assert stand_alone(run_filled_up) == (few <= FEW_ROWS)

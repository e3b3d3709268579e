"""Which of a shard's slots hold the experts that rows are for; step 8 of a token's life."""

import numpy as np
from numpy.typing import NDArray

from router.jit import jit


def warm_up() -> None:
    """Compile the loop, for messages in memory of both kinds."""
    for writeable in (True, False):
        none = np.zeros(0, np.int32)
        none.setflags(write=writeable)
        find_slots(np.zeros(1, np.int32), none, none, 0, np.zeros(0, np.int32))


@jit
def find_slots(
    slot_of: NDArray[np.int32],
    experts: NDArray[np.int32],
    rows: NDArray[np.int32],
    n_rows: int,
    slots: NDArray[np.int32],
) -> bool:
    """Fill `slots` [P] for `experts` [P] by slot_of [E], -1 for none; False if anything is wrong.

    rows: [P] index of each pair's row, of which there are `n_rows`.
    """
    if experts.size == 0:
        return False
    for pair in range(experts.size):
        expert = experts[pair]
        if expert < 0 or expert >= slot_of.size or rows[pair] < 0 or rows[pair] >= n_rows:
            return False
        slots[pair] = slot_of[expert]
        if slots[pair] < 0:
            return False
    return True

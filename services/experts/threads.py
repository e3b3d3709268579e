"""How many CPU threads a batch of rows is worth."""

WORTH_BYTES = 4 * 2**20
"""Of weights that rows go through. Waking threads takes 0.1 to 0.2 ms a call, and takes cores from
whoever computes meanwhile: below this it was hardly ever made up for (two machines of two cores,
DECISIONS.md)."""


def threads_for(n_pairs: int, expert_bytes: int, *, most: int) -> int:
    """One or `most`, for so many pairs of a row and an expert, each through `expert_bytes`.

    Nothing between: OpenMP ends and makes threads when a team changes to another size above one.
    """
    return max(1, most) if n_pairs * expert_bytes >= WORTH_BYTES else 1

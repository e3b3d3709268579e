"""How many CPU threads a batch of rows is worth."""

BYTES_A_THREAD = 32 * 2**20
"""Of weights that rows go through. Waking another thread takes 0.1 to 0.2 ms a call, and it takes
a core from whoever computes meanwhile: below this it is not made up for (DECISIONS.md)."""


def threads_for(n_pairs: int, expert_bytes: int, *, most: int) -> int:
    """Of `most`, for so many pairs of a row and an expert, each through `expert_bytes`."""
    return max(1, min(most, 1 + n_pairs * expert_bytes // BYTES_A_THREAD))

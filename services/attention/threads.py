"""How many CPU threads a step of the engine is worth."""

import torch

WORTH_TOKENS = 128
"""A step has hundreds of small parallel loops, and waking threads for each takes longer than they
save while a layer has few tokens (two cores, DECISIONS.md)."""


def threads_for(n_tokens: int, *, few: int, many: int) -> int:
    """`many` for a step that reads a prompt of some length or decodes as many sequences."""
    return many if n_tokens >= WORTH_TOKENS else few


def use_threads(count: int) -> None:
    """Have the calling thread compute with so many.

    vLLM 0.32's worker for CPUs puts a function that does nothing in the place of torch's, because
    it binds threads to cores; ours are not bound.
    """
    if torch.get_num_threads() != count:
        torch._C.set_num_threads(count)

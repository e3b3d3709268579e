"""How many CPU threads a step of the engine is worth."""

WORTH_TOKENS = 128
"""A step has hundreds of small parallel loops, and waking threads for each takes longer than they
save while a layer has few tokens: below this they lose (two cores, DECISIONS.md)."""


def threads_for(n_tokens: int, *, few: int, many: int) -> int:
    """`many` for a step that reads a prompt of some length, `few` for one that decodes."""
    return many if n_tokens >= WORTH_TOKENS else few

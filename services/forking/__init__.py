"""Python processes that start with vLLM already imported, forked from one that has it."""

is_forked = False
"""Whether this process is one of them: it then ends with whoever asked for it."""

"""How a traced request is known in the engine's process: by an argument that vLLM hands through.

`SamplingParams.extra_args` is vLLM's public place for what it does not read itself.
"""

from typing import Any

KEY = "expertmesh_traceparent"


def mark(sampling_params: Any, traceparent: str) -> None:
    """Set it; empty takes away what a client may have put there."""
    others = {k: v for k, v in (sampling_params.extra_args or {}).items() if k != KEY}
    if traceparent:
        others[KEY] = traceparent
    sampling_params.extra_args = others or None


def traceparent_of(request: Any) -> str | None:
    """Of a request that is new in the scheduler's output."""
    params = request.sampling_params  # None for a request that pools
    found = (getattr(params, "extra_args", None) or {}).get(KEY)
    return found if isinstance(found, str) else None

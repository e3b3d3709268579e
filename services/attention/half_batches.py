"""Cuts an engine's larger steps into two halves of its requests, which run in turn.

A whole step leaves the attention side idle while experts compute, and the shards while nothing is
sent. A half takes as many calls as a whole step, so only steps of many tokens gain: those
that read prompts.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.ubatch_utils import UBatchSlice

from services.attention.turns import cut_at
from services.vllm_forward import StepForward, kept_context

if TYPE_CHECKING:
    from services.attention.remote_pool import RemotePool


class HalfBatches:
    """Stands for the `_model_forward` of vLLM's runner, which is meant to be overridden."""

    def __init__(self, forward: StepForward, pool: "RemotePool", *, least_tokens: int) -> None:
        """least_tokens: of a step that is cut."""
        self._forward = forward
        self._pool = pool
        self.least_tokens = least_tokens
        self.steps = 0  # that were cut

    def __call__(self, **arguments: Any) -> Any:
        """The model's output for a step, [T, H]."""
        tokens = arguments.get("input_ids")
        if tokens is None or tokens.shape[0] < self.least_tokens:
            return self._forward.whole(**arguments)
        starts = self._forward.starts(arguments)
        cut = None if starts is None else cut_at(starts)
        if starts is None or cut is None or self._forward.reads_ahead(starts, cut):
            return self._forward.whole(**arguments)
        self.steps += 1
        parts = [
            UBatchSlice(slice(0, cut), slice(0, starts[cut])),
            UBatchSlice(slice(cut, len(starts) - 1), slice(starts[cut], starts[-1])),
        ]
        team, threads = self._pool.team, torch.get_num_threads()
        contexts = self._forward.contexts(parts)

        def half(number: int) -> torch.Tensor:
            team.use(max(1, threads // 2))  # the shards compute at the same time
            hidden: torch.Tensor = self._forward.within(contexts[number], parts[number], arguments)
            return hidden

        try:
            run = self._pool.turns.run(lambda: half(0), lambda: half(1), keeping=kept_context)
        finally:
            team.use(threads)
        return torch.cat(run)

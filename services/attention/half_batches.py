"""Cuts an engine's larger steps into two halves of its requests, which run in turn.

A whole step leaves the attention side idle while experts compute, and the shards while nothing is
sent. A half takes as many calls as a whole step, so only steps of many tokens gain: those
that read prompts.
"""

from typing import Any

import torch
from vllm.v1.worker.ubatch_utils import UBatchSlice

from services.attention.threads import use_threads
from services.attention.turns import Turns, cut_at
from services.vllm_forward import StepForward, kept_context


class HalfBatches:
    """Stands for the `_model_forward` of vLLM's runner, which is meant to be overridden."""

    def __init__(self, forward: StepForward, turns: Turns, *, least_tokens: int) -> None:
        """least_tokens: of a step that is cut."""
        self._forward = forward
        self._turns = turns
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
        contexts, threads = self._forward.contexts(parts), torch.get_num_threads()

        def half(number: int) -> torch.Tensor:
            use_threads(threads)  # it is each thread's own
            hidden: torch.Tensor = self._forward.within(contexts[number], parts[number], arguments)
            return hidden

        return torch.cat(self._turns.run(lambda: half(0), lambda: half(1), keeping=kept_context))

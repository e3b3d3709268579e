"""vLLM's forward pass over some requests of a step, apart from the others.

What of vLLM's insides this takes is here, for one version, as in `services.vllm_hooks`. vLLM
itself cuts steps on GPUs alone, and there by streams; how it cuts attention's metadata serves here.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import vllm
from vllm import forward_context
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.ubatch_utils import UBatchSlice
from vllm.v1.worker.utils import AttentionGroup

from router.errors import EngineError
from services.vllm_hooks import VLLM_VERSION

EXPECTED_ARGUMENTS = {
    "_model_forward": {"input_ids", "positions", "intermediate_tensors", "inputs_embeds"},
    "_build_attention_metadata": {"num_tokens", "num_reqs", "ubatch_slices", "slot_mappings"},
}
EXPECTED_FIELDS = {
    ForwardContext: {"attn_metadata", "slot_mapping", "is_padding", "moe_layer_index"},
    UBatchSlice: {"request_slice", "token_slice"},
    AttentionGroup: {"backend", "kernel_block_size", "layer_names", "metadata_builders"},
}


def check_forward() -> None:
    """Raise EngineError naming both versions if the forward pass is not the one we know."""
    found: list[str] = []
    for name, arguments in EXPECTED_ARGUMENTS.items():
        method = getattr(GPUModelRunner, name, None)
        if method is None or not arguments <= set(inspect.signature(method).parameters):
            found.append(f"GPUModelRunner.{name}({', '.join(sorted(arguments))})")
    for kind, fields in EXPECTED_FIELDS.items():
        known = {field.name for field in dataclasses.fields(kind)}
        found += [f"{kind.__name__}.{name}" for name in sorted(fields - known)]
    if not hasattr(forward_context, "_forward_context"):
        found.append("forward_context._forward_context")
    if found:
        raise EngineError(
            f"vLLM {vllm.__version__} differs from {VLLM_VERSION}, for which ExpertMesh was "
            f"written: {', '.join(found)}. Install vLLM {VLLM_VERSION}, or set "
            "attention.half_batch_tokens to 0."
        )


def can_be_cut(runner: Any) -> bool:
    """Whether nothing of the engine ties a step's requests together but attention's metadata."""
    config = runner.vllm_config
    return (
        runner.device.type == "cpu"
        and config.model_config.enforce_eager
        and not config.model_config.is_encoder_decoder
        and not config.model_config.is_hybrid
        and config.lora_config is None
        and config.speculative_config is None
        and config.kv_transfer_config is None
        and not config.aux_output_config.enabled
        and config.parallel_config.world_size == 1
    )


class StepForward:
    """The forward pass of vLLM's runner, whole or over some of a step's requests."""

    def __init__(self, runner: Any) -> None:
        """Takes note from now on of what each step's attention metadata are built from.

        Raises EngineError, see `check_forward`.
        """
        check_forward()
        self._runner = runner
        self.whole = runner._model_forward
        self._build = runner._build_attention_metadata
        self._built_from: dict[str, Any] = {}
        runner._build_attention_metadata = self._note_and_build

    def _note_and_build(self, **arguments: Any) -> Any:
        self._built_from = arguments
        return self._build(**arguments)

    def starts(self, arguments: Mapping[str, Any]) -> list[int] | None:
        """Where each request of this step begins among its tokens, and the tokens' number.

        None if the step cannot be cut: it is a trial run, or has more than tokens of text.
        """
        tokens, positions = arguments.get("input_ids"), arguments.get("positions")
        others = (v for k, v in arguments.items() if k not in ("input_ids", "positions"))
        if tokens is None or positions is None or any(other is not None for other in others):
            return None
        count, context, built = tokens.shape[0], get_forward_context(), self._built_from
        if (
            positions.shape != tokens.shape
            or not isinstance(context.attn_metadata, dict)
            or not isinstance(context.slot_mapping, dict)
            or built.get("num_tokens") != count
            or not all(map(_can_be_built_twice, self._groups()))
        ):
            return None
        found: list[int] = self._runner.query_start_loc.np[: built["num_reqs"] + 1].tolist()
        return found if found[-1] == count else None

    def reads_ahead(self, starts: Sequence[int], cut: int) -> bool:
        """Whether a request before the cut reads cache that one behind it writes in this step.

        Prefix caching offers what is scheduled as if it were computed, and the order of a batch
        is not the one of scheduling.
        """
        seq_lens = self._runner.seq_lens[:cut].numpy()
        for group, slots in self._built_from["slot_mappings"].items():
            table = self._runner.input_batch.block_table[group]
            written = np.unique(slots[starts[cut] : starts[-1]].numpy() // table.block_size)
            blocks = table.get_device_tensor(cut).numpy()
            is_read = np.arange(blocks.shape[1]) * table.block_size < seq_lens[:, None]
            if np.isin(blocks[is_read], written).any():
                return True
        return False

    def contexts(self, parts: list[UBatchSlice]) -> list[ForwardContext]:
        """The step's context as each of its parts would have it alone."""
        whole = get_forward_context()
        for group in self._groups():
            while len(group.metadata_builders) < len(parts):
                group.metadata_builders.append(self._further_builder(group))
        metadata, _ = self._build(**{**self._built_from, "ubatch_slices": parts})
        return [
            dataclasses.replace(
                whole,
                attn_metadata=its_metadata,
                slot_mapping={k: v[part.token_slice] for k, v in whole.slot_mapping.items()},
                is_padding=None if whole.is_padding is None else whole.is_padding[part.token_slice],
                additional_kwargs=dict(whole.additional_kwargs),
            )
            for part, its_metadata in zip(parts, metadata, strict=True)
        ]

    def within(
        self, context: ForwardContext, part: UBatchSlice, arguments: Mapping[str, Any]
    ) -> Any:
        """What the whole pass gives, over the part's tokens."""
        tokens = {k: arguments[k][part.token_slice] for k in ("input_ids", "positions")}
        with torch.inference_mode(), override_forward_context(context):
            return self.whole(**{**arguments, **tokens})

    def _groups(self) -> Iterator[AttentionGroup]:
        for groups in self._runner.attn_groups:
            yield from groups

    def _further_builder(self, group: AttentionGroup) -> Any:
        """For another part: a builder may keep memory of its own from building to use."""
        first, runner = group.metadata_builders[0], self._runner
        return type(first)(
            first.kv_cache_spec, group.layer_names, runner.vllm_config, runner.device
        )


def _can_be_built_twice(group: AttentionGroup) -> bool:
    """Whether its builder needs nothing but what it is given, and shares nothing with others."""
    builder = group.metadata_builders[0]
    return (
        group.kernel_block_size is None
        and not builder.requires_block_table_width
        and not builder.supports_update_block_table
    )


@contextmanager
def kept_context() -> Iterator[None]:
    """The forward context, which all threads share, is afterwards what it was before."""
    before = forward_context._forward_context
    try:
        yield
    finally:
        forward_context._forward_context = before

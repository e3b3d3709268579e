"""Which bytes of the checkpoint a slot needs: a model of E experts seen as one of n.

A shard reads only the experts it was given. To vLLM's loaders they are presented as experts
0…n-1 of a smaller model: tensors named per expert are renamed, tensors that hold all experts
(expert first) are sliced, so no loader of any architecture needs to know about slots.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from router.errors import ShardError
from services.checkpoint import Checkpoint, TensorInfo, expert_id, is_routed_expert, layer_of


class ExpertTensors:
    """Reads experts of one checkpoint; `bytes_read` counts what was taken from disk."""

    def __init__(self, checkpoint: Checkpoint, n_experts: int) -> None:
        self._n_experts = n_experts
        self.bytes_read = 0
        self._by_layer: dict[int, list[TensorInfo]] = {}
        for info in checkpoint.tensors.values():
            layer = layer_of(info.name)
            if layer is not None and is_routed_expert(info.name):
                self._by_layer.setdefault(layer, []).append(info)

    def read(self, model_layer: int, experts: Sequence[int]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of `experts` as experts 0…n-1; -1 leaves that place out.

        model_layer: the layer's number in the checkpoint's names (dense layers count too).
        """
        infos = self._by_layer.get(model_layer)
        if not infos:
            raise ShardError(
                f"the checkpoint has no routed-expert tensor for layer {model_layer}; names with "
                "an 'experts' component are looked for"
            )
        with ExitStack() as stack:
            files: dict[Path, Any] = {}  # opening one reads the names of all its tensors
            for info in infos:
                expert = expert_id(info.name)
                if expert is not None and expert not in experts:
                    continue
                if info.file not in files:
                    files[info.file] = stack.enter_context(safe_open(info.file, framework="pt"))
                if expert is None:
                    yield self._fused(files[info.file], info, experts)
                    continue
                tensor = self._whole(files[info.file], info)
                for place, wanted in enumerate(experts):
                    if wanted == expert:
                        yield _renamed(info.name, expert, place), tensor

    def _whole(self, file: Any, info: TensorInfo) -> torch.Tensor:
        tensor: torch.Tensor = file.get_tensor(info.name)
        self.bytes_read += info.n_bytes
        return tensor

    def _fused(
        self, file: Any, info: TensorInfo, experts: Sequence[int]
    ) -> tuple[str, torch.Tensor]:
        """All experts in one tensor: expert e is the e-th of E equal parts of dimension 0."""
        if not info.shape or info.shape[0] % self._n_experts:
            return info.name, self._whole(file, info)  # shared by all experts, as a scale may be
        part = info.shape[0] // self._n_experts
        view = file.get_slice(info.name)
        parts = [view[e * part : (e + 1) * part] if e >= 0 else None for e in experts]
        read = [p for p in parts if p is not None]
        self.bytes_read += sum(p.nbytes for p in read)
        zero = torch.zeros_like(read[0])
        return info.name, torch.cat([zero if p is None else p for p in parts])


def _renamed(name: str, expert: int, place: int) -> str:
    return name.replace(f"experts.{expert}.", f"experts.{place}.", 1)

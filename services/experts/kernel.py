"""The seam behind which a shard computes: slots of experts, rows in, rows out.

First implementation: `vllm_kernel`, with vLLM's own quantisation methods and kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class LoadedSlots:
    """Experts that were read and packed, on their way into slots."""

    layer: int
    experts: Mapping[int, int]  # slot → expert
    weights: Any  # the kernel's own
    read_bytes: int  # taken from disk


class ExpertKernel(Protocol):
    """Experts of every MoE layer in numbered slots. One thread runs and installs."""

    @property
    def n_layers(self) -> int:
        """MoE layers of the model."""

    @property
    def n_experts(self) -> int:
        """Logical experts of a layer."""

    @property
    def n_slots(self) -> int:
        """Slots per layer."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def read(self, layer: int, experts: Mapping[int, int]) -> LoadedSlots:
        """Read experts for slots (slot → expert) from the checkpoint; changes no slot.

        May run in another thread than `run`. Raises ShardError if the checkpoint lacks a tensor.
        """

    def install(self, loaded: LoadedSlots) -> None:
        """Put what was read into its slots; other slots keep what they hold. Short."""

    def run(self, layer: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Each row through the expert of its slot, gate weight 1. Called in inference mode.

        rows: [P, H] model dtype, the kernel's device; slots: [P] int32, filled slots only.
        Returns [P, H] of the same dtype and device, in other memory, since `rows` is used again; a
        row's result does not depend on the others.
        """

    def slot_bytes(self, layer: int, slot: int) -> list[torch.Tensor]:
        """The slot's weights in the kernel's own format, as views: equal slots can be copied."""

    def weight_bytes(self) -> int:
        """Memory of all slots, bytes."""

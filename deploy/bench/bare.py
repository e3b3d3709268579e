"""Experts in plain torch with random weights, for machines without vLLM or a checkpoint.

They are there to be waited for: `bench dispatch --bare` measures what is around them. A shard's
process is `python -m deploy.bench.bare H,I,E,K DTYPE DEVICE NAME FOLDER EXPERTS`, as
`deploy.bench.shard` is with a model.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deploy.bench.shard import serve, slots_of
from router.errors import ConfigError
from services.experts.kernel import LoadedSlots

LAYERS = 2  # one more than none, so that layers differ; their weights are the same


@dataclass(frozen=True, slots=True)
class BareSizes:
    """Of a layer."""

    hidden: int
    intermediate: int
    experts: int
    choices: int

    @classmethod
    def parse(cls, words: str) -> "BareSizes":
        """From "H,I,E,K". Raises ConfigError."""
        try:
            sizes = cls(*(int(word) for word in words.split(",")))
        except (TypeError, ValueError):
            raise ConfigError(
                f"--bare is {words!r}; give hidden and intermediate size, experts and choices, as "
                "7168,2048,64,8."
            ) from None
        if not 1 <= sizes.choices <= sizes.experts or min(sizes.hidden, sizes.intermediate) < 1:
            raise ConfigError(
                f"--bare is {words!r}; sizes are above 0, and choices of the experts."
            )
        return sizes

    def __str__(self) -> str:
        return f"{self.hidden},{self.intermediate},{self.experts},{self.choices}"


class TorchKernel:
    """SwiGLU experts. The same seed on every shard, so an expert is the same wherever it is."""

    n_layers = LAYERS

    def __init__(self, sizes: BareSizes, n_slots: int, dtype: torch.dtype, device: str) -> None:
        self.device = torch.device(device)
        self.n_experts, self.n_slots = sizes.experts, n_slots
        with self.device:
            self._into = torch.zeros(n_slots, 2 * sizes.intermediate, sizes.hidden, dtype=dtype)
            self._out_of = torch.zeros(n_slots, sizes.hidden, sizes.intermediate, dtype=dtype)

    def read(self, layer: int, experts: Mapping[int, int]) -> LoadedSlots:
        """Nothing to read."""
        return LoadedSlots(layer, dict(experts), None, 0)

    def install(self, loaded: LoadedSlots) -> None:
        """Draw the weights of the first layer's; the others share them."""
        for slot, expert in loaded.experts.items() if loaded.layer == 0 else ():
            generator = torch.Generator(self.device).manual_seed(expert)
            for weights in (self._into[slot], self._out_of[slot]):
                weights.normal_(std=weights.shape[1] ** -0.5, generator=generator)

    def run(self, layer: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """rows [P, H], slots [P] int32 → [P, H]."""
        out = torch.empty_like(rows)
        for slot in torch.bincount(slots).nonzero().flatten().tolist():
            of_slot = (slots == slot).nonzero()[:, 0]
            gate, up = (rows[of_slot] @ self._into[slot].T).chunk(2, dim=-1)
            out[of_slot] = (torch.nn.functional.silu(gate) * up) @ self._out_of[slot].T
        return out

    def slot_bytes(self, layer: int, slot: int) -> list[torch.Tensor]:
        """The slot's weights."""
        return [self._into[slot], self._out_of[slot]]

    def weight_bytes(self) -> int:
        """Of all slots."""
        return self._into.nbytes + self._out_of.nbytes


def main(sizes: str, dtype: str, device: str, name: str, folder: str, experts: str) -> None:
    """Until standard input ends."""
    slots = slots_of(experts)
    kernel = TorchKernel(BareSizes.parse(sizes), len(slots), getattr(torch, dtype), device)
    serve(kernel, slots, name, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])

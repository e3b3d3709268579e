"""Runs rows through a shard's kernel in a process that has computed nothing else before.

A program: `python -m tests.support.kernel_rows FOLDER DTYPE TWIN TWINS_DTYPE`. The twin holds the
same values in more bits. Prints JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

EXPERTS = 8
ROWS = 150
BATCHES = 40


def main(folder: Path, dtype: str, twin: Path, twins_dtype: str) -> dict[str, Any]:
    """Relative error against the twin, and in how many batches a row had other bits."""
    import torch

    from services.vllm_hooks import experts_alone, within_layers

    kernel = _kernel(folder, dtype)
    generator = torch.Generator().manual_seed(1)
    hidden = kernel._config.model_config.get_hidden_size()
    rows = torch.randn(ROWS, hidden, generator=generator).to(kernel._config.model_config.dtype)
    slots = torch.randint(EXPERTS, (ROWS,), generator=generator).int()
    with torch.inference_mode():
        torch.set_num_threads(1)
        whole = kernel.run(0, rows, slots).clone()
        ones, places = torch.ones(ROWS, 1), slots.view(-1, 1)
        within = within_layers(kernel._filled[0])(rows, ones, places)
        differing = 0
        for batch in range(BATCHES):
            torch.set_num_threads(1 + batch % 3)
            n_rows = 1 + batch if batch < BATCHES // 2 else 3 * batch
            chosen = torch.randperm(ROWS, generator=generator)[:n_rows]
            alone = kernel.run(0, rows[chosen], slots[chosen])
            differing += not torch.equal(alone, whole[chosen])
        better = _kernel(twin, twins_dtype)
        exact = better.run(0, rows.to(better._config.model_config.dtype), slots).float()
        swapped = kernel.run(0, rows, (slots + 1) % EXPERTS)
        of_last = kernel.run(0, rows, torch.full_like(slots, EXPERTS - 1)).clone()
        kernel.install(kernel.read(0, {0: EXPERTS - 1}))  # as when an expert moves
        moved = kernel.run(0, rows, torch.zeros_like(slots))
    return {
        "error": float((whole.float() - exact).norm() / exact.norm()),
        "error_of_another_expert": float((swapped.float() - exact).norm() / exact.norm()),
        "rows_that_differ_within_vllms_layers": int((whole != within).any(1).sum()),
        "is_called_alone": experts_alone(kernel._filled[0]) is not None,
        "experts": type(experts_alone(kernel._filled[0])).__name__,
        "differing_batches": differing,
        "rows_that_differ_in_another_slot": int((moved != of_last).any(1).sum()),
        "weight_bytes": kernel.weight_bytes(),
    }


def _kernel(folder: Path, dtype: str) -> Any:
    from services.experts.engine import shard_vllm_config
    from services.experts.vllm_kernel import VllmKernel

    kernel = VllmKernel(shard_vllm_config(str(folder), dtype=dtype), EXPERTS)
    kernel.install(kernel.read(0, {slot: slot for slot in range(EXPERTS)}))
    return kernel


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])))

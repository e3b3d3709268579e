"""Between a device and the host's memory, where rows leave from and arrive as arrays.

On a CPU nothing is copied. A GPU's copies go through pinned memory, which torch keeps and gives out
again; a copy to the GPU is ordered with its work, one from it is waited for.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from router.rows import Rows, as_array, as_tensor
from services.transport.wire import DTYPES

CODES: Final = {as_tensor(np.empty(0, dtype)).dtype: code for code, dtype in enumerate(DTYPES)}
"""The place in `wire.DTYPES` of each dtype that rows may have on a device."""


def host_empty(
    shape: tuple[int, ...], dtype: "np.dtype[Any]", device: torch.device
) -> NDArray[Any]:
    """To be filled and then taken to `device`. dtype: as `router.rows` has it."""
    if device.type == "cpu":
        return np.empty(shape, dtype)
    kind = as_tensor(np.empty(0, dtype)).dtype
    return as_array(torch.empty(shape, dtype=kind, pin_memory=True))


class PairRoom:
    """Rows and slots of pairs, as arrays to be filled and as tensors: on a CPU the same memory.

    To be used again only when what was computed of them is on the host.
    """

    def __init__(
        self, n_pairs: int, hidden: int, dtype: "np.dtype[Any]", device: torch.device
    ) -> None:
        """dtype: of the rows, see `router.rows`; device: where they are wanted."""
        self._device = device
        self.rows = host_empty((n_pairs, hidden), dtype, device)
        self.slots = host_empty((n_pairs,), np.dtype(np.int32), device)
        self._tensors = as_tensor(self.rows), as_tensor(self.slots)

    def on_device(self, n_pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first so many, where they are computed: rows [n, H] and slots [n] int32."""
        rows, slots = self._tensors
        if n_pairs < rows.shape[0]:
            rows, slots = rows[:n_pairs], slots[:n_pairs]
        return to_device(rows, self._device), to_device(slots, self._device)


def to_host(x: torch.Tensor) -> Rows:
    """x [N, H] on the host."""
    if x.is_cpu:
        return as_array(x.contiguous())
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return as_array(host)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the host where `device` computes."""
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)

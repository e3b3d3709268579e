"""Between a device and the host's memory, where rows leave from and arrive as arrays.

On a CPU nothing is copied. A GPU's copies go through pinned memory, which torch keeps and gives out
again; a copy to the GPU is ordered with its work, one from it is waited for.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from router.rows import Rows, as_array, as_tensor


def host_empty(n_rows: int, like: Rows, device: torch.device) -> Rows:
    """[n_rows, H] of the dtype of `like` [N, H], to be filled and then taken to `device`."""
    if device.type == "cpu":
        return np.empty((n_rows, like.shape[1]), like.dtype)
    dtype = as_tensor(like).dtype
    return as_array(torch.empty(n_rows, like.shape[1], dtype=dtype, pin_memory=True))


def to_host(x: torch.Tensor) -> Rows:
    """x [N, H] on the host."""
    if x.is_cpu:
        return as_array(x.contiguous())
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return as_array(host)


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array where `device` computes."""
    tensor = as_tensor(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)

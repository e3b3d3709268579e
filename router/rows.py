"""Rows on the host as numpy arrays that share their memory with torch's tensors.

numpy has no bfloat16: such rows are a uint16 array of their bits. Caches are cold after a layer's
weights have gone through them, and then a call of torch takes several times as long as one of
numpy, so between model and experts rows are arrays.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Rows = NDArray[Any]  # [N, H] float32, float16, or uint16 for bfloat16


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A contiguous tensor on the CPU as an array."""
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    array: NDArray[Any] = tensor.numpy()
    return array


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """The other way round."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor

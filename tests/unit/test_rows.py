"""Rows as arrays and as tensors: the same memory, also where numpy knows no such type."""

import numpy as np
import pytest
import torch

from router.rows import as_array, as_tensor
from services.transport.staging import host_empty, to_device, to_host

CPU = torch.device("cpu")
DTYPES = [
    (torch.float32, np.float32),
    (torch.float16, np.float16),
    (torch.bfloat16, np.uint16),
]


@pytest.mark.parametrize(("dtype", "kind"), DTYPES)
def test_an_array_is_the_tensors_own_memory_and_becomes_the_same_tensor(
    dtype: torch.dtype, kind: type
) -> None:
    tensor = torch.tensor([[1.0, -2.5], [float("inf"), 3e-5]]).to(dtype)
    array = as_array(tensor)
    assert array.dtype == kind
    back = as_tensor(array)
    assert back.dtype is dtype
    assert torch.equal(back, tensor)
    array[0, 1] = array[0, 0]
    assert tensor[0].tolist() == back[0].tolist() == [1.0, 1.0]


def test_bfloat16_bits_are_its_own() -> None:
    assert as_array(torch.tensor([[1.0]], dtype=torch.bfloat16)).tolist() == [[0x3F80]]


@pytest.mark.parametrize(("dtype", "kind"), DTYPES)
def test_on_a_cpu_staging_copies_nothing_that_is_contiguous(dtype: torch.dtype, kind: type) -> None:
    x = torch.ones(3, 4, dtype=dtype)
    rows = to_host(x)
    rows[1] = 0
    assert not x[1].any() and to_device(as_tensor(rows), CPU).data_ptr() == x.data_ptr()
    room = host_empty((7, 4), rows.dtype, CPU)
    assert room.shape == (7, 4) and room.dtype == np.dtype(kind)


def test_rows_that_are_a_slice_leave_as_they_look() -> None:
    wide = torch.arange(12.0).view(3, 4)
    assert to_host(wide[:, :3]).tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]

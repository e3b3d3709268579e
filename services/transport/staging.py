"""Between a device and the host's memory, where rows leave from and arrive.

On a CPU nothing is copied. A GPU's copies go through pinned memory, which torch keeps and gives out
again; a copy to the GPU is ordered with its work, one from it is waited for.
"""

import torch


def host_empty(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A CPU tensor to be filled and then taken to `device`."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_host(x: torch.Tensor) -> torch.Tensor:
    """x as a contiguous CPU tensor."""
    if x.device.type == "cpu":
        return x.contiguous()
    host = host_empty(*x.shape, dtype=x.dtype, device=x.device)
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return host


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x, a CPU tensor, where `device` computes."""
    return x.to(device, non_blocking=True)

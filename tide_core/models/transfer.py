"""Between host and device: copies through page-locked memory, without waiting for them.

A copy from ordinary memory to a CUDA device holds the thread up until the device has worked through all that
it was given before. From page-locked memory it is one more thing that the device does in its order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to CUDA without waiting. The copy is in order on the current stream.

    torch keeps page-locked memory for reuse, and does not give it out again before the copy is done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

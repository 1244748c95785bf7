"""In which precision a student computes."""

from __future__ import annotations

import torch

from tide_core.contracts.job import Hyperparameters


def autocast_dtype(hyper: Hyperparameters, device: torch.device) -> torch.dtype | None:
    """dtype of the student's forward: bfloat16 where asked for, or where the device computes in it.

    None means that the forward runs in the weights' own float32.
    """
    match hyper.precision:
        case "float32":
            return None
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if has_bfloat16 else None

"""Compiled layers: `torch.compile` fuses what lies between the matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tide_core.models.decoder import Decoder
from tide_core.models.layers import DecoderLayer


def compile_layers(model: Decoder, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each layer's forward, for any shape; of the last one also the form that is read at some places.

    The forward alone, not the module's call: what is hooked to a module (gathering its parts, for one) stays
    outside of the graph. Layers of one shape share one compilation.

    Args:
        model: changed in place.
        backend: of `torch.compile`; the default needs a C++ compiler on a CPU and Triton on CUDA.
    """
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)
    last = model.layers[-1]
    assert isinstance(last, DecoderLayer)
    last.read = torch.compile(last.read, dynamic=True, backend=backend)  # type: ignore[method-assign]

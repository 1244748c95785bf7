"""What of a forward may happen at once: inputs are made and answers return while the device computes.

On a CUDA device three streams work side by side: one makes the inputs of the next forward, the default one
computes, and one copies answers into page-locked memory. A CPU does one thing after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Landing:
    """Tensors on their way to the host; here they are there already."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)

    def is_ready(self) -> bool:
        """Whether :meth:`wait` returns at once."""
        return True

    def wait(self) -> list[Tensor]:
        """The tensors on the host, as soon as they are whole."""
        return self._tensors


class Streams:
    """The order of things on a device that does one after the other."""

    @classmethod
    def of(cls, device: torch.device) -> Streams:
        """What suits the device."""
        return CudaStreams(device) if device.type == "cuda" else Streams()

    def enter(self) -> None:
        """Called once by the thread that computes."""

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Around the making of inputs. What is computed afterwards sees them whole.

        The inputs must be kept until the forward's :class:`Landing` was waited for.
        """
        yield

    def start_landing(self, tensors: Sequence[Tensor]) -> Landing:
        """Begin to bring results of the computation to the host."""
        return Landing(tensors)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Landed tensors one after the other in memory of their own, whole when this returns."""
        return torch.cat(list(parts))

    def settle(self) -> None:
        """Wait until nothing is under way, so that the memory of a failed forward may be freed."""


class CudaStreams(Streams):
    """Streams of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inputs: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._answers: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def enter(self) -> None:
        """See :meth:`Streams.enter`: streams belong to the thread's present device."""
        torch.cuda.set_device(self._device)

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """See :meth:`Streams.prepare`: layouts ask the device for their sizes, on a stream without work."""
        with torch.cuda.stream(self._inputs):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._inputs)

    def start_landing(self, tensors: Sequence[Tensor]) -> Landing:
        """See :meth:`Streams.start_landing`."""
        self._answers.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._answers):
            copies = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for tensor in tensors
            ]
            done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return _CudaLanding(copies, tensors, done)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """See :meth:`Streams.join`: not behind the next forward, which is launched already."""
        with torch.cuda.stream(self._answers):
            whole = torch.cat(list(parts))
        self._answers.synchronize()
        return whole

    def settle(self) -> None:
        """See :meth:`Streams.settle`."""
        torch.cuda.synchronize(self._device)


class _CudaLanding(Landing):
    def __init__(self, copies: Sequence[Tensor], originals: Sequence[Tensor], done: Any) -> None:
        super().__init__(copies)
        # Given back before the copy is done, their memory would be written by the next forward.
        self._originals = list(originals)
        self._done = done

    def is_ready(self) -> bool:
        return bool(self._done.query())

    def wait(self) -> list[Tensor]:
        self._done.synchronize()
        self._originals.clear()
        return self._tensors

"""The trainer's half of held answers: reads the values that a replica holds into memory of this process.

In: a `HeldAnswer` of `workers.teachers.holding`, the replica's half, which travelled over Serve. Out: the
answer with its values as a tensor on this process's device, or an error that says whether to ask again.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from tide_core.contracts.errors import RetryableScoreError
from tide_core.contracts.scores import ScoreResponse
from workers.ray_tensors import call_on_actor, forget_tensor, read_tensor
from workers.teachers.holding import HeldAnswer, release

if TYPE_CHECKING:
    import torch

# One at a time: a NIXL agent is not made for several threads, and a second read from a replica whose memory
# has changed ends the first (ray-project/ray#65905). A single read uses all of the link.
_READING = threading.Lock()


def read_held_answer(held: HeldAnswer, device: str, *, asked_at: float, timeout: float) -> ScoreResponse:
    """Read an answer's values into this process and tell the replica that it need not hold them any more.

    Args:
        held: what the replica answered.
        device: where the values are to lie.
        asked_at: when the question was sent, by ``time.monotonic``.
        timeout: seconds until this gives up.

    Raises:
        RetryableScoreError: it took too long: the replica may have reused the memory.
        ray.exceptions.RayError: the replica is gone, or could not be read from.
    """
    try:
        values = _read_values(held, device, timeout)
    finally:
        _release(held)
    # All time but the replica's own bounds how long the values had to be held.
    if time.monotonic() - asked_at - held.seconds > held.hold_seconds:
        raise RetryableScoreError("The teacher's answer was read too late: its memory may have been reused.")
    return replace(held.response, values=values)


def _read_values(held: HeldAnswer, device: str, timeout: float) -> torch.Tensor:
    deadline = time.monotonic() + timeout
    if not _READING.acquire(timeout=timeout):
        raise RetryableScoreError("The teacher's answer was not read in time: others were being read.")
    try:
        buffer = allocate_values(held.shape, device)
        read_tensor(held.reference[0], buffer, deadline)
    finally:
        _READING.release()
    return buffer


def _release(held: HeldAnswer) -> None:
    """Tell the replica that this process does not need the values any more."""
    from ray.exceptions import RayError

    forget_tensor(held.reference[0])
    with suppress(RayError):  # a replica that is gone holds nothing
        call_on_actor(held.replica, release, held.key)


def allocate_values(shape: tuple[int, int], device: str) -> torch.Tensor:
    """Memory for the values, which no kernel that is still to run will touch."""
    import torch

    if torch.device(device).type != "cuda":
        return torch.empty(shape, dtype=torch.bfloat16, device=device)
    # From a pool of its own: NIXL writes at once, while memory that the trainer has given back may still be
    # used by kernels in its queue. The trainer's stream is recorded, so that this memory is not given out too
    # early either.
    with torch.cuda.device(device), torch.cuda.stream(_stream(device)):
        buffer = torch.empty(shape, dtype=torch.bfloat16, device=device)
    buffer.record_stream(torch.cuda.default_stream(device))
    return buffer


_STREAMS: dict[str, torch.cuda.Stream] = {}


def _stream(device: str) -> torch.cuda.Stream:
    import torch

    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]

"""The trainer's side of Ray Direct Transport: values that a replica holds, read into this process by NIXL."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tide_core.contracts.errors import InvalidInputError, RetryableScoreError
from tide_core.contracts.scores import ScoreResponse
from workers.teachers.holding import HeldAnswer, release

if TYPE_CHECKING:
    import torch

# One at a time: a NIXL agent is not made for several threads, and a second read from a replica whose memory
# has changed ends the first (ray-project/ray#65905). A single read uses all of the link.
_READING = threading.Lock()


def require_nixl(place: str) -> None:
    """See to it that NIXL works in this process, which Ray must know already.

    Args:
        place: what this process is, for the message.

    Raises:
        InvalidInputError: ``nixl_missing`` or ``nixl_broken``.
    """
    try:
        import nixl._api  # noqa: F401
    except ImportError as error:
        raise InvalidInputError(
            f"resources.tensor_transport is 'nixl', but {place} cannot import it ({error}): install "
            "'tide-distill[nixl]' on all workers, or use tensor_transport 'object_store'.",
            code="nixl_missing",
            param="resources.tensor_transport",
        ) from None
    from ray.experimental.rdt.util import get_tensor_transport_manager

    try:
        get_tensor_transport_manager("NIXL").get_nixl_agent()
    except Exception as error:
        raise InvalidInputError(
            f"resources.tensor_transport is 'nixl', but NIXL does not start in {place}: "
            f"{type(error).__name__}: {error}. Look at its network (UCX_LOG_LEVEL=debug says more), or use "
            "tensor_transport 'object_store'.",
            code="nixl_broken",
            param="resources.tensor_transport",
        ) from None


def fetched(held: HeldAnswer, device: str, *, asked: float, timeout: float) -> ScoreResponse:
    """Read an answer's values into this process and let the replica go of them.

    Args:
        held: what the replica answered.
        device: where the values are to lie.
        asked: when the question was sent, by ``time.monotonic``.
        timeout: seconds until this gives up.

    Raises:
        RetryableScoreError: it took too long: the values may be gone, or be others.
        ray.exceptions.RayError: the replica is gone, or could not be read from.
    """
    try:
        values = _read(held, device, timeout)
    finally:
        _let_go(held)
    # What was not the replica's time bounds the way here and the reading: the values had to stay as long.
    if time.monotonic() - asked - held.seconds > held.hold_seconds:
        raise RetryableScoreError("The teacher's answer was read too late: its memory may have been reused.")
    return replace(held.response, values=values)


def _read(held: HeldAnswer, device: str, timeout: float) -> torch.Tensor:
    import ray
    from ray.experimental import set_target_for_ref

    deadline = time.monotonic() + timeout
    if not _READING.acquire(timeout=timeout):
        raise RetryableScoreError("The teacher's answer was not read in time: others were being read.")
    try:
        buffer = _room(held.shape, device)
        set_target_for_ref(held.reference[0], [buffer])
        ray.get(held.reference[0], timeout=max(0.001, deadline - time.monotonic()))
    finally:
        _READING.release()
    return buffer


def _let_go(held: HeldAnswer) -> None:
    """Tell the replica that nobody reads these values any more."""
    import ray

    _forget(held.reference[0])
    with suppress(ray.exceptions.RayError):  # a replica that is gone holds nothing
        held.replica.__ray_call__.remote(release, held.key)


def _room(shape: tuple[int, int], device: str) -> torch.Tensor:
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


def _forget(reference: Any) -> None:
    """Drop what Ray notes of a borrowed reference and keeps for ever: some 19 kB an answer (ray#57962)."""
    import ray

    manager = ray._private.worker.global_worker.rdt_manager
    with manager._lock:
        manager._managed_rdt_metadata.pop(reference.hex(), None)

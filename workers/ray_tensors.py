"""Tensors between two processes by Ray Direct Transport: the only user of private or alpha parts of Ray.

In: tensors and Ray's references to them. Out: references, values, and Tide's errors where NIXL is missing or
does not start. Ray may change all of this in any version: `VERIFIED_RAY` names those that were tried, and
`tests/workers/test_ray_tensors.py` fails for any other and for a part that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tide_core.contracts.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

VERIFIED_RAY = ("2.60",)
"""Major and minor numbers of the versions of Ray that this module was tried with."""


def require_nixl(place: str) -> None:
    """Check that NIXL works in this process, which Ray must know already.

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


def offer_tensor(values: Tensor) -> Any:
    """Let other processes read a tensor of this one by NIXL; gives the reference to it.

    Ray waits for all kernels on the device first.
    """
    import ray

    return ray.put(values, _tensor_transport="nixl")


def read_tensor(reference: Any, buffer: Tensor, deadline: float) -> None:
    """Read an offered tensor into memory of this process.

    Args:
        reference: what `offer_tensor` gave.
        buffer: of the tensor's shape and dtype.
        deadline: by ``time.monotonic``; after it this gives up.

    Raises:
        ray.exceptions.RayError: the other process is gone, cannot be read from, or is too slow.
    """
    import ray
    from ray.experimental import set_target_for_ref

    set_target_for_ref(reference, [buffer])
    ray.get(reference, timeout=max(0.001, deadline - time.monotonic()))


def forget_tensor(reference: Any) -> None:
    """Drop what Ray notes of a borrowed reference and keeps forever: some 19 kB an answer (ray#57962)."""
    import ray

    manager = ray._private.worker.global_worker.rdt_manager
    with manager._lock:
        manager._managed_rdt_metadata.pop(reference.hex(), None)


def call_on_actor(actor: Any, function: Callable[..., object], *arguments: object) -> None:
    """Have an actor call a function with itself as first argument; does not wait for the result."""
    actor.__ray_call__.remote(function, *arguments)


def current_actor() -> Any:
    """Handle of the actor that this process is."""
    import ray

    return ray.get_runtime_context().current_actor

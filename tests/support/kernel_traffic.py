"""Counts what torch's kernels read and write, as `FlopCounterMode` counts what its products multiply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FREE = {
    *(
        "view",
        "_unsafe_view",
        "transpose",
        "t",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
    ),
    *("split", "split_with_sizes", "unbind", "detach", "alias", "as_strided", "empty", "empty_like"),
    *("new_empty", "promote_types", "lift_fresh", "_local_scalar_dense", "resize_", "set_"),
}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
_FILLS = {
    "zeros",
    "ones",
    "full",
    "zeros_like",
    "ones_like",
    "full_like",
    "new_zeros",
    "new_full",
    "new_ones",
}
_GATHERS = {"index", "index_select", "gather", "embedding"}
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class TrafficCounter(TorchDispatchMode):
    """Bytes that all kernels but matrix products read and write while it is active, and how many there are.

    A gather reads what it writes, a scatter touches what it is given. Attention kernels read and write each
    of their tensors once, masks left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.kernels = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _FREE:
            return result
        self.kernels += 1
        if name not in _PRODUCTS:
            self.bytes += _moved(name, args, kwargs or {}, result)
        return result


def traffic(run: Callable[[], object]) -> int:
    """Bytes that the kernels of a call read and write."""
    with TrafficCounter() as counter:
        run()
    return counter.bytes


def _moved(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    read, written = _tensors((args, kwargs)), _tensors(result)
    if name in _FILLS:
        return _size(written)
    if name in _GATHERS:
        return 2 * _size(written)
    if name.startswith(_ATTENTION):
        # Forward: query, key, value and the result. Backward: those, the result's gradient, three gradients.
        is_backward = name.endswith("backward")
        return _size(read[:5]) + _size(written[:3]) if is_backward else _size(read[:3]) + _size(written[:1])
    match name:
        case "copy_":
            return _size(read[1:2]) + _size(written)
        case "index_add_":
            return 3 * _size(read[2:])
        case "scatter_add_":
            return 3 * _size(read[2:])
        case "scatter_":
            return _size(read[1:2])
        case "index_put_":
            return _size(read[-1:])
        case "embedding_dense_backward":
            return _size(written)
        case "logsumexp":  # peak, difference, exponential, sum
            return 6 * _size(read)
        case "sum" if kwargs.get("dtype", read[0].dtype) != read[0].dtype:
            # torch writes a copy in the wider dtype first, and reads that.
            wide = read[0].numel() * written[0].element_size()
            return _size(read) + 2 * wide + _size(written)
    return _size(read) + _size(written)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _size(tensors: Sequence[Tensor]) -> int:
    """Bytes; of an expanded tensor those that there are."""
    return sum(
        min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in tensors
    )

"""Where a forward is read: the last layer computes nothing for the other places but keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.models.transfer import to_device


@dataclass(frozen=True)
class ReadPlaces:
    """Places of a batch that are read, and how their queries are laid out for attention.

    Attributes:
        index: int64 ``[masked]``, places in the flattened ``[batch * seq]``, in any order.
        slot: int64 ``[masked]``, places in the flattened ``[batch * width]``: each row's reads side by side.
        columns: int64 ``[batch, width]``, the place in the row behind each slot, 0 where there is none.
    """

    index: Int[Tensor, " masked"]
    slot: Int[Tensor, " masked"]
    columns: Int[Tensor, "batch width"]

    def to(self, device: torch.device) -> ReadPlaces:
        """The same on a device."""
        return ReadPlaces(*(to_device(part, device) for part in (self.index, self.slot, self.columns)))

    def queries(self, values: Float[Tensor, "masked head dim"]) -> Float[Tensor, "batch head width dim"]:
        """Values of the places as attention takes them; slots without a place hold zeros."""
        batch, width = self.columns.shape
        slots = values.new_zeros(batch * width, *values.shape[1:]).index_copy(0, self.slot, values)
        return slots.view(batch, width, *values.shape[1:]).transpose(1, 2)

    def back(self, values: Float[Tensor, "batch head width dim"]) -> Float[Tensor, "masked _"]:
        """From attention's layout back to the places, heads side by side."""
        return values.transpose(1, 2).flatten(2).flatten(0, 1)[self.slot]

    def pattern(
        self, mask: Float[Tensor, "#batch 1 query key"] | None
    ) -> Float[Tensor, "batch 1 width key"] | None:
        """The rows of the places of what is added to the scores."""
        if mask is None:
            return None
        batch = self.columns.shape[0]
        rows = torch.arange(batch, device=mask.device)[:, None]
        return mask.expand(batch, -1, -1, -1)[rows, 0, self.columns][:, None]


def read_places(index: Int[Tensor, " masked"], batch: int, seq: int) -> ReadPlaces:
    """Lay out the places ``index`` of a flattened ``[batch * seq]``.

    On a device this waits for how many places the fullest row has: lay out on the host, then move.
    """
    row = index.div(seq, rounding_mode="floor")
    counts = torch.zeros(batch, dtype=torch.int64, device=index.device)
    counts.scatter_add_(0, row, torch.ones_like(row))
    width = max(1, int(counts.max()))
    order = row.argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    rank = torch.empty_like(row)
    rank[order] = torch.arange(len(row), device=index.device) - firsts[row[order]]
    slot = row * width + rank
    columns = torch.zeros(batch * width, dtype=torch.int64, device=index.device)
    columns[slot] = index - row * seq
    return ReadPlaces(index, slot, columns.view(batch, width))

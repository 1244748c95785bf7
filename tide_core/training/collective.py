"""Sums over the data-parallel trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Collective(Protocol):
    """What a trainer needs of the other trainers."""

    @property
    def rank(self) -> int:
        """This trainer's number, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many trainers there are."""
        ...

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all trainers, in float64; every trainer calls it at the same point."""
        ...


class Alone:
    """A single trainer."""

    rank = 0
    size = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """The values themselves."""
        return list(values)


class ProcessGroup:
    """Trainers in torch's default process group, which Ray Train has set up."""

    def __init__(self, device: torch.device) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self._device = device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum by an all-reduce."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

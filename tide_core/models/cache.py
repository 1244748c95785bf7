"""Keys and values of a clean prefix, kept in buffers that are written in place.

A forward with a cache writes its own keys and values behind the prefix and attends to prefix and itself
through a
view: nothing is copied or concatenated. Until ``advance`` is called the next forward overwrites what the last
    one
wrote, as a denoising step needs it: only finished blocks become part of the prefix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tide_core.contracts.errors import ShapeError


class KeyValueCache:
    """Buffers for all layers of one batch, allocated by the first forward.

    Args:
        capacity: the largest number of positions, prefix and current block together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._states: Tensor | None = None
        self._positions: Tensor | None = None

    def write(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_head seq dim"],
        value: Float[Tensor, "batch kv_head seq dim"],
    ) -> tuple[Float[Tensor, "batch kv_head key dim"], Float[Tensor, "batch kv_head key dim"]]:
        """Put keys and values behind the prefix; views of the prefix and them. Not differentiable.

        Raises:
            ShapeError: they do not fit behind the prefix, or the batch changed.
        """
        end = self.length + key.shape[2]
        if end > self.capacity:
            raise ShapeError(f"The cache holds {self.capacity} positions; {end} are needed.", param="cache")
        if layer not in self._keys:
            batch, kv_heads, _, dim = key.shape
            self._keys[layer] = key.new_zeros(batch, kv_heads, self.capacity, dim)
            self._values[layer] = value.new_zeros(batch, kv_heads, self.capacity, dim)
        keys, values = self._keys[layer], self._values[layer]
        if keys.shape[0] != key.shape[0]:
            raise ShapeError(
                f"The cache holds {keys.shape[0]} rows, the batch {key.shape[0]}.", param="cache"
            )
        with torch.no_grad():
            keys[:, :, self.length : end] = key
            values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def write_states(
        self, states: Float[Tensor, "batch seq hidden"], positions: Int[Tensor, "batch seq"]
    ) -> tuple[Float[Tensor, "batch key hidden"], Int[Tensor, "batch key"]]:
        """Put final states and rotary positions behind the prefix's, for models whose states answer for the
        next token; prefix and them together. Called after the layers have written.
        """
        end = self.length + states.shape[1]
        if self._states is None or self._positions is None:
            batch, _, width = states.shape
            self._states = states.new_zeros(batch, self.capacity, width)
            self._positions = positions.new_zeros(batch, self.capacity)
        with torch.no_grad():
            self._states[:, self.length : end] = states
            self._positions[:, self.length : end] = positions
        return self._states[:, :end], self._positions[:, :end]

    def advance(self, positions: int) -> None:
        """Make the next ``positions`` written positions part of the prefix."""
        assert self.length + positions <= self.capacity
        self.length += positions

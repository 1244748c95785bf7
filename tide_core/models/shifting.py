"""Logits of the next token, made answers at the token's own position.

Dream and Fast-dLLM v2 keep what the causal model they come from does: the hidden state at position i - 1
predicts the token at position i. Here it is moved to where it belongs, once, at the end of a forward: what
reads a decoder (engine, losses, sampler) has no case for it.

The state that answers for a query is that of **the key at the position before it which the query may see**.
In one sequence that is its neighbour. In the staircase it is the neighbour in the same noisy block, and for
the first token of a block the clean copy of the token before it, as in Fast-dLLM v2's own sampler, where a
block is finished before the next one begins. With a cache it may lie in the prefix, whose states are kept for
that. The first token of a sequence has none before it and is answered by its own state, as in the published
code.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tide_core.models.reading import ReadPlaces


def previous_keys(
    mask: Bool[Tensor, "#batch 1 query key"] | BlockMask | None,
    key_positions: Int[Tensor, "batch key"],
    rows: Int[Tensor, " place"],
    columns: Int[Tensor, " place"],
) -> Int[Tensor, " place"]:
    """The key that answers for each query.

    Args:
        mask: which keys a query may see; None: all.
        key_positions: rotary position of each key; the queries are the last of them.
        rows: batch row of each query.
        columns: its place among the queries.
    """
    keys = key_positions.shape[1]
    if mask is None:
        own, is_seen = columns, torch.ones((), dtype=torch.bool, device=columns.device)
    elif isinstance(mask, BlockMask):
        own = columns
        every = torch.arange(keys, device=columns.device)
        is_seen = mask.mask_mod(rows[:, None], torch.zeros_like(rows)[:, None], columns[:, None], every[None])
    else:
        own = columns + keys - mask.shape[2]
        is_seen = mask[rows if mask.shape[0] > 1 else torch.zeros_like(rows), 0, columns]
    positions = key_positions[rows]
    is_before = is_seen & (positions == positions.gather(1, own[:, None]) - 1)
    return torch.where(is_before.any(-1), is_before.long().argmax(-1), own)


def shift_states(
    states: Float[Tensor, "batch key hidden"],
    mask: Bool[Tensor, "#batch 1 query key"] | BlockMask | None,
    key_positions: Int[Tensor, "batch key"],
    queries: int,
) -> Float[Tensor, "batch query hidden"]:
    """The state that answers for each of the last ``queries`` keys."""
    batch = states.shape[0]
    rows = torch.arange(batch, device=states.device).repeat_interleave(queries)
    columns = torch.arange(queries, device=states.device).repeat(batch)
    keys = previous_keys(mask, key_positions, rows, columns)
    shifted: Tensor = torch.unflatten(states[rows, keys], 0, (batch, queries))
    return shifted


def shift_places(
    places: ReadPlaces,
    mask: Bool[Tensor, "#batch 1 query key"] | BlockMask | None,
    positions: Int[Tensor, "batch seq"],
) -> ReadPlaces:
    """Where the answers for these places stand; each in the row and the slot of its own."""
    seq = positions.shape[1]
    rows = places.index.div(seq, rounding_mode="floor")
    keys = previous_keys(mask, positions, rows, places.index - rows * seq)
    columns = places.columns.flatten().index_copy(0, places.slot, keys).view_as(places.columns)
    return ReadPlaces(rows * seq + keys, places.slot, columns)

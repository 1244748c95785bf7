"""What the demo's models are pretrained on: next tokens first, masked tokens then.

Both teachers start as causal models and are turned to diffusion, as LLaDA2.0 and WeDLM were: a causal model
learns from every token of a sequence, a masked one from those that happen to be masked.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tide_core.masks.block_attention import bidirectional_mask, compact_layout
from tide_core.models.decoder import Decoder
from workers.demo.pretraining_data import Batch
from workers.demo.sizes import BLOCK_SIZE

_SMALLEST_TIMESTEP = 0.05
_WHOLE_SEQUENCE_SHARE = 0.25
"""In this share of the sequences the prompt may be masked too: it holds the same language at no more cost."""


class PretrainingLoss(Protocol):
    """A mean loss in nats a token of one batch."""

    def __call__(self, model: Decoder, batch: Batch, draw: np.random.Generator) -> Float[Tensor, ""]: ...


def causal_loss(model: Decoder, batch: Batch, draw: np.random.Generator) -> Float[Tensor, ""]:
    """Cross-entropy of the next token, over whole conversations."""
    ids, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
    positions = torch.arange(ids.shape[1])
    hidden = model(ids, (positions[:, None] >= positions)[None, None])
    is_target = positions[1:] < lengths[:, None]
    return functional.cross_entropy(model.lm_head(hidden[:, :-1][is_target]), ids[:, 1:][is_target])


def bidirectional_loss(model: Decoder, batch: Batch, draw: np.random.Generator) -> Float[Tensor, ""]:
    """Masked diffusion with full attention: one noised sequence (LLaDA2's way, MDLM's bound)."""
    ids, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
    is_masked, weights = _draw_masks(batch, draw)
    noised = ids.masked_fill(is_masked, model.mask_token_id)
    hidden = model(noised, bidirectional_mask(lengths, ids.shape[1]))
    return _weigh_losses(model, hidden[is_masked], ids[is_masked], weights[is_masked])


def staircase_loss(model: Decoder, batch: Batch, draw: np.random.Generator) -> Float[Tensor, ""]:
    """Block diffusion: `[x_t | x_0]` under the block pattern, in the compact layout (BD3LM)."""
    ids, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
    is_masked, weights = _draw_masks(batch, draw)
    layout = compact_layout(is_masked, lengths, BLOCK_SIZE)
    hidden = model(layout.input_ids(ids, model.mask_token_id), layout.attention_mask, layout.position_ids)
    return _weigh_losses(model, hidden.flatten(0, 1)[layout.masked_index], ids[is_masked], weights[is_masked])


def _draw_masks(batch: Batch, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Masks with stratified timesteps, and the weight of each position, sum of weights about one a token.

    A position weighs (maskable / masked) of its sequence instead of 1/t: the same expectation with less
    variance.
    """
    count = len(batch.lengths)
    timesteps = (draw.permutation(count) + draw.random(count)) / count
    timesteps = _SMALLEST_TIMESTEP + (1 - _SMALLEST_TIMESTEP) * timesteps
    is_token = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
    takes_whole = draw.random(count) < _WHOLE_SEQUENCE_SHARE
    is_maskable = np.where(takes_whole[:, None], is_token, batch.is_response)
    scores = np.where(is_maskable, draw.random(is_maskable.shape), np.inf)
    # The lowest score is always masked, so that no sequence is computed for nothing.
    is_masked = (scores < timesteps[:, None]) | (scores == scores.min(axis=1, keepdims=True))
    per_sequence = is_maskable.sum(axis=1) / is_masked.sum(axis=1) / is_maskable.sum()
    weights = np.broadcast_to(per_sequence[:, None], is_masked.shape).astype(np.float32)
    return torch.from_numpy(is_masked), torch.from_numpy(weights)


def _weigh_losses(
    model: Decoder,
    hidden: Float[Tensor, "masked hidden"],
    targets: Tensor,
    weights: Float[Tensor, " masked"],
) -> Float[Tensor, ""]:
    losses = functional.cross_entropy(model.lm_head(hidden), targets, reduction="none")
    return (losses * weights).sum()

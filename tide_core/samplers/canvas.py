"""The token grid that a sampler works on: rows of equal length whose blocks lie at the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError


@dataclass
class Canvas:
    """Mutable state of one batch.

    Attributes:
        ids: tokens so far; the mask token where nothing is decided, anything at padding.
        is_masked: positions still to be decided.
        is_answer: positions that were to be decided at the beginning.
        is_real: everything but padding.
        origin: for each row the column from which positions are reported.
        block_size: columns of a block; the width is a multiple of it.
    """

    ids: Int[Tensor, "batch seq"]
    is_masked: Bool[Tensor, "batch seq"]
    is_answer: Bool[Tensor, "batch seq"]
    is_real: Bool[Tensor, "batch seq"]
    origin: list[int]
    block_size: int

    @property
    def blocks(self) -> int:
        return self.ids.shape[1] // self.block_size

    def to(self, device: torch.device) -> Canvas:
        """The same canvas on a device."""
        names = ("ids", "is_masked", "is_answer", "is_real")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def span(self, block: int) -> slice:
        """Columns of a block."""
        return slice(block * self.block_size, (block + 1) * self.block_size)

    def position_ids(self) -> Int[Tensor, "batch seq"]:
        """Count of real tokens before each one."""
        return (self.is_real.long().cumsum(-1) - 1).clamp_min(0)


def answer_canvas(
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    block_size: int,
    pads_prompt: bool,
    shortens_last_block: bool = False,
    mask_token_id: int,
    device: torch.device,
) -> Canvas:
    """Prompts followed by masks.

    With ``pads_prompt`` each prompt is left-padded so that all answers begin at the same block boundary.
    Without, the padding is whole blocks only, blocks count from each prompt's own token 0, and the first
    block of the answer begins with the prompt's remainder. With ``shortens_last_block`` nothing sees what
    lies behind the ``max_new_tokens``, as if the last block ended there.
    """
    tails = [0 if pads_prompt else len(prompt) % block_size for prompt in prompts]
    bodies = [len(prompt) - tail for prompt, tail in zip(prompts, tails, strict=True)]
    start = -(-max(bodies) // block_size) * block_size
    answer = -(-(max(tails) + max_new_tokens) // block_size) * block_size
    shape = (len(prompts), start + answer)
    ids = torch.full(shape, mask_token_id, dtype=torch.long)
    is_masked = torch.zeros(shape, dtype=torch.bool)
    is_real = torch.ones(shape, dtype=torch.bool)
    origin = []
    for row, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
        left = start - body
        begin = left + len(prompt)
        ids[row, left:begin] = torch.tensor(prompt, dtype=torch.long)
        is_real[row, :left] = False
        # A last block that is longer than what is asked for stays masked behind it, as in training.
        is_masked[row, begin : begin + max_new_tokens] = True
        if shortens_last_block:
            is_real[row, begin + max_new_tokens :] = False
        origin.append(begin)
    return _canvas(ids, is_masked, is_real, origin, block_size).to(device)


def infill_canvas(
    sequences: Sequence[Sequence[int]],
    is_masked: Sequence[Sequence[bool]],
    *,
    block_size: int,
    mask_token_id: int,
    device: torch.device,
) -> Canvas:
    """Sequences with gaps, blocks counted from token 0, right-padded to whole blocks.

    Raises:
        InvalidInputError: a sequence and its flags differ in length.
    """
    if len(is_masked) != len(sequences):
        raise InvalidInputError(
            f"There are {len(sequences)} sequences and flags for {len(is_masked)}.", param="is_masked"
        )
    width = max(1, -(-max(map(len, sequences)) // block_size)) * block_size
    ids = torch.full((len(sequences), width), mask_token_id, dtype=torch.long)
    masked = torch.zeros(ids.shape, dtype=torch.bool)
    is_real = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (sequence, flags) in enumerate(zip(sequences, is_masked, strict=True)):
        if len(sequence) != len(flags):
            raise InvalidInputError(
                f"Sequence {row} has {len(sequence)} tokens and {len(flags)} flags.", param="is_masked"
            )
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        masked[row, : len(sequence)] = torch.tensor(flags, dtype=torch.bool)
        is_real[row, : len(sequence)] = True
    ids[masked] = mask_token_id
    return _canvas(ids, masked, is_real, [0] * len(sequences), block_size).to(device)


def _canvas(
    ids: Int[Tensor, "batch seq"],
    is_masked: Bool[Tensor, "batch seq"],
    is_real: Bool[Tensor, "batch seq"],
    origin: list[int],
    block_size: int,
) -> Canvas:
    return Canvas(ids, is_masked, is_masked.clone(), is_real, origin, block_size)

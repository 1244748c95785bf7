"""What the noise leaves to compute: layouts drawn as the trainers draw them, sizes only.

The compact layout's size depends on timestep and masks. Sequences are drawn once, from a fixed seed with one
timestep in each equal part of [min_timestep, 1), and everything else here is their means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tide_core.contracts.job import NoiseSpec, ResolvedJobSpec
from tide_core.contracts.objective import CompDemoContext, Pipeline
from tide_core.contracts.plan import DataExpectations
from tide_core.contracts.scores import STAIRCASES, Layout
from tide_core.queueing.fair_queue import length_bucket

Counts = npt.NDArray[np.int64]
Rates = npt.NDArray[np.float64]

_DRAWN_TOKENS = 2**20
_FEWEST, _MOST = 16, 2048
_SEED = 2604


@dataclass(frozen=True)
class DrawnSequences:
    """Sizes of drawn sequences.

    Attributes:
        tokens: of a student's sequence, before the layout.
        kept: int64 [sequence], tokens in the student's compact layout.
        masked: int64 [sequence], masked student tokens.
        teacher_tokens: of a teacher's sequence.
        teacher_rows: int64 [sequence], rows of the teacher's forward, 0 where nothing is masked.
        teacher_lengths: int64 [sequence], tokens of each of those rows.
        teacher_masked: int64 [sequence], tokens that the teacher is asked about.
    """

    tokens: int
    kept: Counts
    masked: Counts
    teacher_tokens: int
    teacher_rows: Counts
    teacher_lengths: Counts
    teacher_masked: Counts

    def padded_kept(self, micro_batch: int, share: int) -> float:
        """Mean length of a sequence in its micro-batch, all of whose rows are as long as its longest.

        Args:
            micro_batch: sequences of a forward.
            share: sequences of a trainer in a step, dealt to forwards in the order of their lengths.
        """
        size = min(share, self.kept.size)
        shares = self.kept[: self.kept.size // size * size].reshape(-1, size)
        longest = -np.sort(-shares, axis=1)[:, ::micro_batch]
        counts = np.diff(np.append(np.arange(0, size, micro_batch), size))
        return float((longest * counts).sum(axis=1).mean() / size)

    def pad_teacher(self, together: int) -> float:
        """Mean tokens of a sequence in the teacher's forward, when so many sequences wait at a time.

        The engine batches like lengths by bucket; all rows of a forward are as long as its longest.
        """
        size = max(1, min(together, self.teacher_lengths.size))
        count = self.teacher_lengths.size // size
        lengths = self.teacher_lengths[: count * size]
        buckets = np.array([length_bucket(int(length)) for length in lengths])
        # One key for each bucket within each group of sequences that wait together.
        keys = np.repeat(np.arange(count), size) * (int(buckets.max()) + 1) + buckets
        _, place = np.unique(keys, return_inverse=True)
        longest = np.zeros(place.max() + 1, np.int64)
        np.maximum.at(longest, place, lengths)
        return float((self.teacher_rows[: count * size] * longest[place]).mean())


def mask_rates(noise: NoiseSpec, timesteps: Rates) -> Rates:
    """``1 - alpha(t)``: the probability that a maskable token is masked."""
    if noise.schedule == "linear":
        return timesteps
    rates: Rates = np.cos(np.pi / 2 * (1.0 - timesteps))
    return rates


def draw_sequences(spec: ResolvedJobSpec, data: DataExpectations) -> DrawnSequences:
    """Draw the sizes of a job's sequences."""
    block = spec.student.block_size
    asked = min(data.student_tokens or spec.data.student_length, spec.data.student_length)
    # Sequences are filled up to a whole block with end tokens, which are trained.
    tokens = -(-asked // block) * block
    teacher_tokens = _teacher_tokens(spec, data, asked)
    count = int(np.clip(_DRAWN_TOKENS // tokens, _FEWEST, _MOST))
    draws = np.random.default_rng(_SEED)
    rates = mask_rates(spec.noise, _timesteps(spec.noise, count, draws))
    if Pipeline(spec.pipeline) is Pipeline.CROSS_TOKENIZER:
        # A chunk is masked whole when one of its tokens is.
        rates = 1.0 - (1.0 - rates) ** data.tokens_per_chunk
    masked = draws.binomial(_maskable(tokens, data.prompt_share, block), rates[:, None])
    kept = _count_kept([masked], tokens, block)
    rows, lengths, asked_about = _teacher_sizes(spec, data, teacher_tokens, rates, draws)
    return DrawnSequences(
        tokens=tokens,
        kept=kept,
        masked=masked.sum(axis=1),
        teacher_tokens=teacher_tokens,
        teacher_rows=rows,
        teacher_lengths=lengths,
        teacher_masked=asked_about,
    )


def _teacher_tokens(spec: ResolvedJobSpec, data: DataExpectations, student_tokens: int) -> int:
    longest = spec.data.teacher_length
    assert longest is not None, "a resolved spec names the teacher's length"
    return max(2, min(longest, round(student_tokens * data.teacher_tokens_per_token)))


def _timesteps(noise: NoiseSpec, count: int, draws: np.random.Generator) -> Rates:
    """One in each equal part of the range, in any order: the micro-batches mix them."""
    shares = (np.arange(count) + draws.random(count)) / count
    return noise.min_timestep + (1.0 - noise.min_timestep) * draws.permutation(shares)


def _maskable(tokens: int, prompt_share: float, block: int) -> Counts:
    """Tokens of each block that may be masked."""
    blocks = np.arange(-(-tokens // block))
    ends = np.minimum((blocks + 1) * block, tokens)
    prompt = min(tokens - 1, round(tokens * prompt_share))
    maskable: Counts = np.clip(ends - np.maximum(blocks * block, prompt), 0, None)
    return maskable


def _count_kept(views: list[Counts], tokens: int, block: int) -> Counts:
    """Noisy blocks with a mask, of each view, and the clean blocks before the last of them all."""
    blocks = np.arange(views[0].shape[1])
    sizes = np.minimum(block, tokens - blocks * block)
    kept = np.zeros(views[0].shape[0], np.int64)
    last = np.zeros_like(kept)
    for counts in views:
        is_kept = counts > 0
        kept += (is_kept * sizes).sum(axis=1)
        last = np.maximum(last, np.where(is_kept, blocks, 0).max(axis=1))
    return kept + last * block


def _teacher_sizes(
    spec: ResolvedJobSpec,
    data: DataExpectations,
    tokens: int,
    rates: Rates,
    draws: np.random.Generator,
) -> tuple[Counts, Counts, Counts]:
    """Rows, length of a row and masked tokens of each sequence."""
    block = spec.student.block_size
    counts = draws.binomial(_maskable(tokens, data.prompt_share, block), rates[:, None])
    views = [counts]
    if isinstance(spec.teacher_context, CompDemoContext):
        first = draws.binomial(counts, 1.0 - spec.teacher_context.ratio)
        views = [first, counts - first]
    masked = counts.sum(axis=1)
    layout = Layout(spec.teacher.attention)
    if layout in STAIRCASES:
        return (masked > 0).astype(np.int64), _count_kept(views, tokens, block), masked
    rows: Counts = np.stack([(view > 0).any(axis=1) for view in views]).sum(axis=0)
    if layout is Layout.BIDIRECTIONAL:
        return rows, np.full_like(masked, tokens), masked
    numbers = np.arange(counts.shape[1])
    last = np.where(counts > 0, numbers, -1).max(axis=1)
    return rows, np.minimum(tokens, (last + 1) * block), masked

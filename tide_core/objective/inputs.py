"""What an objective works on: one micro-batch at its masked positions, and what the teacher says about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError
from tide_core.losses.sparse import TopK
from tide_core.schedules.tidal import TrainingProgress


@dataclass(frozen=True)
class Normalisers:
    """Global counts of one optimiser step, summed over all workers and micro-batches.

    Attributes:
        maskable_tokens: tokens whose label is not -100; divides the cross-entropy.
        masked_positions: masked student positions; divides the position terms.
        active_chunks: active chunks; divides the chunk terms.
        sequences: sequences of the step; needed by the "sequence" and "batch" normalisations only.
    """

    maskable_tokens: int
    masked_positions: int
    active_chunks: int = 0
    sequences: int = 0


@dataclass(frozen=True)
class ChunkBoundaries:
    """Whether a pre-token boundary follows each active chunk (ALM), on both sides.

    Attributes:
        teacher_log_probs: the teacher's log-probability of a boundary after the chunk.
        student_next: which masked student position follows the chunk, -1 where the next token is visible.
        visible_log_probs: the student's log-probability where the next token is visible: it is known.
        begins_pretoken: which ids of the student's vocabulary begin a pre-token.
    """

    teacher_log_probs: Float[Tensor, " chunk"]
    student_next: Int[Tensor, " chunk"]
    visible_log_probs: Float[Tensor, " chunk"]
    begins_pretoken: Bool[Tensor, " vocab"]


@dataclass(frozen=True)
class ChunkScores:
    """What a teacher says about the active chunks of a micro-batch (pipeline A).

    Attributes:
        log_probs: ``LP_T`` of each active chunk, the sum of its teacher tokens' log-probabilities.
        masked_chunk: active chunk of each masked student position, -1 for positions of none.
        chunk_row: batch row of each active chunk.
        boundaries: what follows each chunk; needed by terms with a chunk filter only.
    """

    log_probs: Float[Tensor, " chunk"]
    masked_chunk: Int[Tensor, " masked"]
    chunk_row: Int[Tensor, " chunk"]
    boundaries: ChunkBoundaries | None = None


@dataclass(frozen=True)
class HiddenScores:
    """A teacher's final hidden states, with its frozen LM head (pipeline B, exact).

    Attributes:
        hidden: at the masked positions that the teacher sees.
        head: the teacher's LM head weight.
        aligned_masked_index: which of the micro-batch's masked positions each row of ``hidden`` belongs to.
        shared_vocab: ids below this mean the same to both models; divergences run over them.
    """

    hidden: Float[Tensor, "aligned teacher_hidden"]
    head: Float[Tensor, "teacher_vocab teacher_hidden"]
    aligned_masked_index: Int[Tensor, " aligned"]
    shared_vocab: int


@dataclass(frozen=True)
class TopKScores:
    """A teacher's most likely tokens and the mass of all others (pipeline B, approximate).

    Attributes:
        ids: the most likely ids below ``shared_vocab``, distinct in each row, likeliest first.
        logits: their logits, up to a constant of each row.
        log_tails: ``log sum exp(logit / T)`` over all other ids of the shared vocabulary, less the same
            constant over T, for each temperature (may be -inf).
        temperatures: those of ``log_tails``; every term's must be among them.
        aligned_masked_index: as in :class:`HiddenScores`.
        shared_vocab: as in :class:`HiddenScores`.
    """

    ids: Int[Tensor, "aligned topk"]
    logits: Float[Tensor, "aligned topk"]
    log_tails: Float[Tensor, "aligned temperature"]
    temperatures: tuple[float, ...]
    aligned_masked_index: Int[Tensor, " aligned"]
    shared_vocab: int

    def at(self, temperature: float) -> TopK:
        """The ids' log-probabilities and the tail's at one temperature; together they sum to 1.

        Raises:
            InvalidInputError: the teacher was not asked at this temperature.
        """
        if temperature not in self.temperatures:
            raise InvalidInputError(
                f"the teacher's top-k scores are at the temperatures {self.temperatures}, a term needs "
                f"{temperature}; ask the teacher at the term's temperature",
                param="teacher.temperatures",
            )
        tail = self.log_tails[:, self.temperatures.index(temperature)]
        scaled = self.logits / temperature
        total = torch.logaddexp(scaled.logsumexp(dim=1), tail)
        return TopK(self.ids, scaled - total[:, None], tail - total)


@dataclass(frozen=True)
class ObjectiveInputs:
    """One micro-batch, reduced to its masked positions.

    Attributes:
        student_hidden: final hidden states at the masked positions, in row-major order over the batch.
        student_head: the student's LM head weight.
        target_ids: the clean token at each masked position.
        masked_row: batch row of each masked position.
        t: diffusion timestep of each row, in (0, 1).
        progress: how far training is, for the terms with a schedule.
        normalisers: global counts of the step.
        teacher: the teacher's scores, or None when no term needs them.
        row_maskable: maskable tokens of each row; needed by the "sequence" normalisation only.
    """

    student_hidden: Float[Tensor, "masked hidden"]
    student_head: Float[Tensor, "vocab hidden"]
    target_ids: Int[Tensor, " masked"]
    masked_row: Int[Tensor, " masked"]
    t: Float[Tensor, " batch"]
    progress: TrainingProgress
    normalisers: Normalisers
    teacher: ChunkScores | HiddenScores | TopKScores | None = None
    row_maskable: Int[Tensor, " batch"] | None = None

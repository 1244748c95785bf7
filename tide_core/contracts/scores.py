"""The score contract: what a trainer asks of a teacher and what it gets (no torch, NumPy arrays only).

A request holds a ragged batch of clean ids; one byte a token says in which view the token is masked. The
answer holds values at masked tokens alone, in the order of the flat batch, because that is all a loss needs:
one float a token for chunk likelihoods, one hidden state for divergences over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from tide_core.contracts.errors import ShapeError

VISIBLE, FIRST_VIEW, SECOND_VIEW = 0, 1, 2
"""Values of `groups`: visible in every view, masked in the first view, masked in the second (CompDemo).

A token is read in the view in which it is masked; in the other view it is revealed.
"""


class Layout(StrEnum):
    """What a teacher's queries may attend to."""

    BIDIRECTIONAL = "bidirectional"
    """One noised sequence per view, every token sees every token."""
    BLOCK_CAUSAL = "block_causal"
    """One noised sequence per view, a block sees itself and earlier blocks."""
    BLOCK_STAIRCASE = "block_staircase"
    """A clean copy and a noisy copy per view; a noisy block sees itself and earlier clean blocks."""


class Want(StrEnum):
    """What is wanted at each masked token."""

    TARGET_LOG_PROB = "target_log_prob"
    """``log softmax(z)[clean id]``: float32."""
    HIDDEN = "hidden"
    """The final hidden state after the last norm, bfloat16 bits as uint16; the client holds the LM head."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A pure question to a teacher about a ragged batch.

    Attributes:
        token_ids: int32 [tokens], clean ids of all sequences one after the other.
        offsets: int64 [batch + 1], where each sequence starts; the last entry is `tokens`.
        groups: uint8 [tokens], VISIBLE, FIRST_VIEW or SECOND_VIEW.
        layout: attention pattern.
        block_size: tokens per block for the block layouts, counted from each sequence's token 0.
        want: what to return.
        job_id: who asks (for fair queueing and metrics; never part of the answer).
        weight: the job's share in the pool's fair queue.
        fingerprint: the teacher that must answer, or None before attestation.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    groups: npt.NDArray[np.uint8]
    layout: Layout
    want: Want
    block_size: int = 32
    job_id: str = ""
    weight: float = 1.0
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.token_ids.ndim != 1 or self.groups.shape != self.token_ids.shape:
            raise ShapeError(
                f"groups has shape {self.groups.shape}, token_ids {self.token_ids.shape}: both must "
                "be the same flat length",
                param="groups",
            )
        if (
            self.offsets.ndim != 1
            or self.offsets.size < 2
            or self.offsets[0] != 0
            or self.offsets[-1] != self.token_ids.size
            or (np.diff(self.offsets) <= 0).any()
        ):
            raise ShapeError(
                "offsets must rise from 0 to the number of tokens, without an empty sequence", param="offsets"
            )
        if self.groups.size and int(self.groups.max()) > SECOND_VIEW:
            raise ShapeError("groups may hold 0, 1 and 2 only", param="groups")

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self.offsets.size - 1)

    @property
    def masked_counts(self) -> npt.NDArray[np.int64]:
        """int64 [batch]: masked tokens of each sequence, i.e. rows of the answer that belong to it."""
        return np.add.reduceat((self.groups > 0).astype(np.int64), self.offsets[:-1])


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """The answer to one request.

    Attributes:
        values: at the masked tokens, in flat order: float32 [masked] for TARGET_LOG_PROB,
            uint16 (bfloat16 bits) [masked, teacher_hidden] for HIDDEN.
        fingerprint: of the teacher that answered.
        tokenizer_fingerprint: of its tokenizer.
        queue_seconds: waiting in the replica.
        compute_seconds: share of the forward that this request caused.
        cache_hits: sequences that came from the score cache.
    """

    values: npt.NDArray[np.float32] | npt.NDArray[np.uint16]
    fingerprint: str
    tokenizer_fingerprint: str
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    cache_hits: int = 0

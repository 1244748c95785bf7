"""The score contract: what a trainer asks of a teacher and what it gets (no torch, NumPy arrays only).

In: arrays of token ids, offsets and masks. Out: a checked `ScoreRequest`, and a `ScoreResponse` with values.

A request holds a ragged batch of clean ids; one byte a token says in which view the token is masked. The
answer holds values at masked tokens alone, in the order of the flat batch, because that is all a loss needs:
one float a token for chunk likelihoods (two with ALM's debiasing), one hidden state for divergences over the
vocabulary, or the likeliest ids with the mass of the rest for an approximation of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tide_core.contracts.errors import InvalidInputError, ShapeError

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
    CAUSAL = "causal"
    """The same copies in WeDLM's order: the clean copy is causal; a noisy block sees earlier clean blocks,
    and in itself each token those before it, where the visible tokens come before the masked ones."""


STAIRCASES = frozenset({Layout.BLOCK_STAIRCASE, Layout.CAUSAL})
"""Layouts with a clean copy beside the noisy ones."""


class Want(StrEnum):
    """What is wanted at each masked token."""

    TARGET_LOG_PROB = "target_log_prob"
    """``log softmax(z)[clean id]``: float32."""
    TARGET_AND_BOUNDARY = "target_and_boundary"
    """``log softmax(z)[clean id]`` and the log-probability that a token that begins a pre-token stands here
    (ALM's outcome debiasing): float32, two a token."""
    HIDDEN = "hidden"
    """The final hidden state after the last norm, bfloat16 bits as uint16; the client holds the LM head."""
    TOP_K = "top_k"
    """The likeliest ids and the mass of all others at some temperatures (:class:`TopKQuestion`): uint8."""


@dataclass(frozen=True, slots=True)
class TopKQuestion:
    """How many ids are wanted, over which part of the vocabulary, and at which temperatures.

    Attributes:
        k: ids a token.
        vocab: the distribution is that over the ids below it.
        temperatures: of the losses; the ids are the same at each, the tail's mass is not.
    """

    k: int
    vocab: int
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocab:
            raise InvalidInputError(f"k must lie in 1 .. {self.vocab}, got {self.k}", param="k")
        if not self.temperatures or not all(0 < each < math.inf for each in self.temperatures):
            raise InvalidInputError(
                f"temperatures must be positive and at least one, got {self.temperatures}",
                param="temperatures",
            )

    @property
    def row_format(self) -> np.dtype[np.void]:
        """What one token's bytes hold.

        - ``ids``: int32 [k], likeliest first;
        - ``logits``: float16 [k], less the largest: at most 0. Rounded at 11 bits of mantissa;
        - ``log_tails``: float32 [temperatures], ``log sum exp(logit / T)`` over all other ids, less the
          largest logit; -inf when there are none. Kept as a sum of its own, since ``1 - sum(top)`` would
          lose a small tail in rounding.
        """
        return np.dtype(
            [
                ("ids", "<i4", (self.k,)),
                ("logits", "<f2", (self.k,)),
                ("log_tails", "<f4", (len(self.temperatures),)),
            ]
        )


class ValueFormat(NamedTuple):
    """Dtype of an answer's values and what each masked token has of them: () or (width,)."""

    dtype: np.dtype[Any]
    row: tuple[int, ...]

    def empty(self) -> npt.NDArray[Any]:
        """The values of a question in which nothing is masked."""
        return np.zeros((0, *self.row), self.dtype)


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
        top_k: what TOP_K asks for; None for every other want.
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
    top_k: TopKQuestion | None = None

    def __post_init__(self) -> None:
        if (self.want is Want.TOP_K) != (self.top_k is not None):
            raise InvalidInputError("top_k belongs to the want 'top_k', and only to it", param="top_k")
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

    def value_format(self, hidden_size: int) -> ValueFormat:
        """What each masked token's values look like when the teacher's states are so wide."""
        return value_format(self.want, self.top_k, hidden_size)


def value_format(want: Want, top_k: TopKQuestion | None, hidden_size: int) -> ValueFormat:
    """What each masked token's values look like."""
    match want:
        case Want.TARGET_LOG_PROB:
            return ValueFormat(np.dtype(np.float32), ())
        case Want.TARGET_AND_BOUNDARY:
            return ValueFormat(np.dtype(np.float32), (2,))
        case Want.HIDDEN:
            return ValueFormat(np.dtype(np.uint16), (hidden_size,))
        case Want.TOP_K:
            assert top_k is not None
            return ValueFormat(np.dtype(np.uint8), (top_k.row_format.itemsize,))


Values = npt.NDArray[np.float32] | npt.NDArray[np.uint16] | npt.NDArray[np.uint8]
"""Values of an answer, by the want: :func:`value_format`."""


@runtime_checkable
class TensorValues(Protocol):
    """Hidden states that never were in the host's memory: a bfloat16 torch tensor [masked, hidden].

    What this module, which knows no torch, must know of it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """As NumPy's."""

    @property
    def dtype(self) -> Any:
        """A torch.dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """The answer to one request.

    Attributes:
        values: at the masked tokens, in flat order, [masked, ...] as :func:`value_format` says; of HIDDEN
            also a tensor, where the transport carries tensors.
        fingerprint: of the teacher that answered.
        tokenizer_fingerprint: of its tokenizer.
        queue_seconds: waiting in the replica.
        compute_seconds: share of the forward that this request caused.
        cache_hits: sequences that came from the score cache.
    """

    values: Values | TensorValues
    fingerprint: str
    tokenizer_fingerprint: str
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    cache_hits: int = 0

    @property
    def array(self) -> Values:
        """The values, of an answer that came by way of the host's memory."""
        assert isinstance(self.values, np.ndarray), "these values are a tensor"
        return self.values

"""The way from a trainer to its teacher, whatever carries it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol, runtime_checkable

import numpy as np

from tide_core.contracts.errors import FingerprintMismatchError, InvalidInputError, ScoreError
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, TensorValues, Values, Want
from tide_core.contracts.teacher import TeacherDescription


@runtime_checkable
class ScoreTransport(Protocol):
    """Carries score requests to a teacher. Safe to use from several threads."""

    def submit(self, request: ScoreRequest) -> Future[ScoreResponse]:
        """Ask; returns at once.

        The future gives an answer that was checked (:func:`check_response`), or raises

        - RetryableScoreError: the teacher stayed busy or away until the deadline;
        - FingerprintMismatchError: another teacher answered;
        - InvalidInputError, ScoreError: the teacher refused this request or failed at it.

        Arrays of an answer may be read-only views of shared memory. A transport may answer HIDDEN with a
        bfloat16 tensor instead, on the device that it was opened for.
        """

    def describe(self) -> TeacherDescription:
        """What the teacher says of itself.

        Raises:
            ScoreError: as for :meth:`submit`.
        """

    def close(self) -> None:
        """Cancel what is under way and free everything; futures that are not done raise."""


def check_request(
    request: ScoreRequest, *, fingerprint: str, vocab_size: int, knows_boundaries: bool
) -> None:
    """Refuse a question that this teacher cannot answer.

    Args:
        request: the question.
        fingerprint: of the teacher.
        vocab_size: rows of its LM head.
        knows_boundaries: whether it was told which ids begin a pre-token.

    Raises:
        FingerprintMismatchError: the request is for another teacher.
        InvalidInputError: ids outside the vocabulary, a weight or block size that is not positive, or
            boundaries that the teacher does not know.
    """
    if request.fingerprint is not None and request.fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"The request is for the teacher {request.fingerprint}, this one is {fingerprint}.",
            param="fingerprint",
        )
    if request.block_size < 1 or not 0 < request.weight < float("inf"):
        raise InvalidInputError(
            f"block_size ({request.block_size}) and weight ({request.weight}) must be positive.",
            param="block_size" if request.block_size < 1 else "weight",
        )
    lowest, highest = int(request.token_ids.min()), int(request.token_ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise InvalidInputError(
            f"token_ids holds {lowest if lowest < 0 else highest}, outside the teacher's vocabulary of "
            f"{vocab_size}: was the text tokenised with the teacher's tokenizer?",
            param="token_ids",
        )
    if request.top_k is not None and request.top_k.vocab > vocab_size:
        raise InvalidInputError(
            f"top_k asks about {request.top_k.vocab} ids, the teacher has {vocab_size}.", param="top_k"
        )
    if request.want is Want.TARGET_AND_BOUNDARY and not knows_boundaries:
        raise InvalidInputError(
            "This teacher was loaded without its tokenizer's boundaries: it cannot say where pre-tokens "
            "begin.",
            param="want",
        )


def check_response(request: ScoreRequest, response: ScoreResponse, fingerprint: str | None) -> None:
    """Refuse an answer that came from other weights or does not fit its request.

    Args:
        request: what was asked.
        response: what came back.
        fingerprint: of the teacher that must have answered; None for any.

    Raises:
        FingerprintMismatchError: other weights answered.
        ScoreError: the values have another shape or dtype than the request calls for.
    """
    if fingerprint is not None and response.fingerprint != fingerprint:
        raise FingerprintMismatchError(
            f"The answer came from the teacher {response.fingerprint}, but the lease is for {fingerprint}: "
            "the pool was changed while the job ran.",
            param="fingerprint",
        )
    masked = int(request.masked_counts.sum())
    values = response.values
    width = values.shape[1] if len(values.shape) > 1 else 0
    wanted = request.value_format(hidden_size=width)
    is_tensor = not isinstance(values, np.ndarray)
    is_typed = _is_tensor_of_hidden(request, values) if is_tensor else values.dtype == wanted.dtype
    if not is_typed or values.shape != (masked, *wanted.row):
        raise ScoreError(
            f"The answer holds {values.dtype} {list(values.shape)} for {masked} masked tokens "
            f"({request.want}).",
            param="values",
        )


def _is_tensor_of_hidden(request: ScoreRequest, values: Values | TensorValues) -> bool:
    # By its name: this module needs no torch.
    return request.want is Want.HIDDEN and str(values.dtype) == "torch.bfloat16"

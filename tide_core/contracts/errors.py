"""The one root of Tide's exceptions.

Every error carries a stable ``code`` (what a program branches on), a message that says what is wrong and
what to do about it, and optionally the ``param`` (a dotted path into the input) that caused it.
"""

from __future__ import annotations


class TideError(Exception):
    """Root of all errors that Tide raises on purpose.

    Attributes:
        code: stable, machine-readable identifier in snake_case.
        message: one or two sentences for a person.
        param: dotted path of the offending field, key or tensor, if there is one.
    """

    code = "tide_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidInputError(TideError):
    """The caller gave something that cannot work: fix the input and try again."""

    code = "invalid_input"


class ShapeError(InvalidInputError):
    """Tensors or arrays do not fit together; ``param`` names the one at fault."""

    code = "shape_mismatch"


class NonFiniteError(TideError):
    """A NaN or an infinity where the mathematics allows none."""

    code = "non_finite"


class AlignmentError(InvalidInputError):
    """Two tokenisations do not cover the same bytes."""

    code = "alignment_failed"


class CheckpointError(InvalidInputError):
    """A model folder is incomplete, contradictory or of another architecture."""

    code = "bad_checkpoint"


class TokenizerError(InvalidInputError):
    """A tokenizer folder lacks what the method needs, such as a mask token."""

    code = "bad_tokenizer"


class DataError(InvalidInputError):
    """A data source is missing, empty or of an unknown form."""

    code = "bad_data"


class ScoreError(TideError):
    """A teacher could not answer a score request."""

    code = "score_failed"


class RetryableScoreError(ScoreError):
    """The teacher is busy or restarting: the same request may succeed later."""

    code = "score_unavailable"


class FingerprintMismatchError(ScoreError):
    """The answer came from other weights than the lease's: never train on it."""

    code = "fingerprint_mismatch"


class ConflictError(TideError):
    """The request contradicts the present state of the resource."""

    code = "conflict"


class NotFoundError(TideError):
    """There is no such resource."""

    code = "not_found"


class UnauthorizedError(TideError):
    """A request shows no token, or one that is not valid (any more)."""

    code = "unauthorized"


class ForbiddenError(TideError):
    """The token is valid, but its role does not allow this."""

    code = "role_not_allowed"


class ComputeUnavailableError(TideError):
    """The cluster does not answer (yet, or any more): wait and ask again."""

    code = "compute_unavailable"

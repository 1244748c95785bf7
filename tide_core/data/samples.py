"""What preparation makes of a row: a sample ready to train on, or a rejection with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Int32


class RejectionReason(StrEnum):
    """Why a row is not trained on; each is counted in the manifest."""

    MALFORMED_ROW = "malformed_row"
    """The line is not JSON, or not an object."""
    MISSING_FIELD = "missing_field"
    """The columns that make up a row are absent or null."""
    UNSUPPORTED_CONTENT = "unsupported_content"
    """A message's content is not text (an image, a tool call), or a message has no role."""
    INVALID_UNICODE = "invalid_unicode"
    """A lone surrogate: the text has no UTF-8 form."""
    NO_ASSISTANT_MESSAGE = "no_assistant_message"
    """A conversation without an answer to learn."""
    EMPTY_RESPONSE = "empty_response"
    """The answer, or the text, is empty or white space alone."""
    TEMPLATE_REFUSED = "template_refused"
    """A chat template raised an error over this conversation, such as roles that do not alternate."""
    CONTENT_NOT_LOCATED = "content_not_located"
    """The template left out or rewrote the answer, so that its place is unknown."""
    TOKENS_DO_NOT_COVER_TEXT = "tokens_do_not_cover_text"
    """A tokenizer's normaliser changed the text, so that its bytes cannot be compared."""
    MASK_TOKEN_IN_TEXT = "mask_token_in_text"
    """The text spells a mask token, which would be learnt as an answer."""
    PROMPT_LONGER_THAN_LENGTH = "prompt_longer_than_length"
    """The prompt alone fills the student's length: nothing is left to train."""
    NO_ALIGNED_CONTENT = "no_aligned_content"
    """Nothing of the answer can be compared with the teacher: its prompt fills its length, for instance."""
    HELD_OUT_OVER_LIMIT = "held_out_over_limit"
    """Set aside from training, but beyond the number of held-out rows that was asked for."""


@dataclass(frozen=True)
class Rejection:
    """A row that is not trained on."""

    row_index: int
    reason: RejectionReason
    detail: str = ""


@dataclass(frozen=True)
class PreparedSample:
    """One conversation in both tokenisations, with the correspondence between them.

    Attributes:
        sample_index: place of the row in the sources taken one after the other; with the seed and the epoch
            it keys every random draw over this sample.
        source_index: which data source it came from.
        student_ids: int32, ends in end-of-sequence tokens up to a multiple of the block size.
        labels: int32, the token where it is trained, -100 on the prompt; the closing tokens are trained.
        teacher_ids: int32, the teacher's own tokenisation of the same conversation.
        student_chunk_ids: int32, number of each student token's chunk, -1 none (different tokenizers).
        teacher_chunk_ids: int32, the same for the teacher's tokens.
        teacher_positions: int32, for each student token its place in ``teacher_ids``, -1 none (shared
            tokenizer); the ids at both places are equal.

    Either the two chunk arrays or ``teacher_positions`` are None, by the pipeline.
    """

    sample_index: int
    source_index: int
    student_ids: Int32[np.ndarray, " student_seq"]
    labels: Int32[np.ndarray, " student_seq"]
    teacher_ids: Int32[np.ndarray, " teacher_seq"]
    student_chunk_ids: Int32[np.ndarray, " student_seq"] | None = None
    teacher_chunk_ids: Int32[np.ndarray, " teacher_seq"] | None = None
    teacher_positions: Int32[np.ndarray, " student_seq"] | None = None

    @property
    def chunk_count(self) -> int:
        """Number of chunks; 0 with a shared tokenizer."""
        ids = self.student_chunk_ids
        return 0 if ids is None or not len(ids) else int(ids.max()) + 1

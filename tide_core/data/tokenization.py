"""One side of a pair: its tokenizer, its template, and texts in its tokens with the bytes they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64
from tokenizers import Tokenizer, normalizers

from tide_core.alignment.bytes import TokenTable, token_spans, token_table
from tide_core.checkpoints.special_tokens import SpecialTokens, find_special_tokens
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import AlignmentError
from tide_core.data.conversations import Conversation, PlainText, UnusableRowError
from tide_core.data.samples import RejectionReason
from tide_core.data.templates import ChatTemplate

_UNICODE_FORMS = {
    "NFC": normalizers.NFC,
    "NFD": normalizers.NFD,
    "NFKC": normalizers.NFKC,
    "NFKD": normalizers.NFKD,
}


@dataclass(frozen=True)
class PlacedBytes:
    """Where one answer lies in a text, in bytes: see ``templates.Placed``."""

    response_start: int
    start: int
    end: int
    skipped: int
    dropped: int
    is_last: bool


@dataclass(frozen=True)
class RenderedText:
    """A row as one side reads it."""

    text: str
    answers: tuple[PlacedBytes, ...]
    is_plain: bool


@dataclass(frozen=True)
class TokenizedText:
    """A text in one side's tokens.

    Attributes:
        ids: int32 ``[seq]``.
        spans: int64 ``[seq, 2]``, byte range of each token in the text; (0, 0) for one put before it.
        answers: the places of the trained answers.
        is_plain: a text without turns.
    """

    ids: Int32[np.ndarray, " seq"]
    spans: Int64[np.ndarray, "seq 2"]
    answers: tuple[PlacedBytes, ...]
    is_plain: bool


class TextSide:
    """A tokenizer folder, ready to render and tokenise.

    Args:
        folder: has ``tokenizer.json`` and its configs.
        options: variables for the chat template.

    Raises:
        TokenizerError: the folder has no usable tokenizer.
    """

    def __init__(self, folder: str | Path, options: Mapping[str, object]) -> None:
        self.folder = folder
        self.options = dict(options)
        self.tokenizer = load_tokenizer(folder)
        self.table: TokenTable = token_table(self.tokenizer)
        self.special: SpecialTokens = find_special_tokens(folder, self.tokenizer)
        self.leading_ids = _leading_ids(self.tokenizer)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; rows of plain text do without one."""
        return ChatTemplate.from_folder(self.folder, self.options)

    @cached_property
    def unicode_forms(self) -> tuple[normalizers.Normalizer, ...]:
        """The Unicode normal forms that this tokenizer brings a text into before it cuts it."""
        normalizer = self.tokenizer.normalizer
        names = _form_names(normalizer) if normalizer else []
        return tuple(_UNICODE_FORMS[name]() for name in names)

    def render(self, row: Conversation | PlainText, *, every_answer: bool) -> RenderedText:
        """The text that this side's model reads, and the places of the trained answers.

        Raises:
            UnusableRowError: see ``ChatTemplate.render_placed``.
        """
        if isinstance(row, PlainText):
            size = len(row.text.encode())
            return RenderedText(row.text, (PlacedBytes(0, 0, size, 0, 0, True),), is_plain=True)
        rendered = self.template.render_placed(row.messages, every_answer=every_answer)
        contents = [message.content for message in row.messages if message.role == "assistant"]
        answers = []
        for placed, content in zip(rendered.answers, contents[-len(rendered.answers) :], strict=True):
            start, end, response_start = (
                len(rendered.text[:offset].encode())
                for offset in (placed.start, placed.end, placed.response_start)
            )
            skipped = len(content[: placed.skipped].encode())
            dropped = len(content[len(content) - placed.dropped :].encode())
            answers.append(PlacedBytes(response_start, start, end, skipped, dropped, placed.is_last))
        return RenderedText(rendered.text, tuple(answers), is_plain=False)

    def tokenize(self, rendered: Sequence[RenderedText]) -> list[TokenizedText | UnusableRowError]:
        """Tokens of many texts; an error in the place of a text that its tokens do not spell.

        A conversation brings its own special tokens by the template. A plain text gets those that the
        tokenizer puts in front of a text, and is closed by the end-of-sequence token.
        """
        encodings = self.tokenizer.encode_batch_fast(
            [item.text for item in rendered], add_special_tokens=False
        )
        found: list[TokenizedText | UnusableRowError] = []
        for item, encoding in zip(rendered, encodings, strict=True):
            try:
                found.append(self._assemble(item, encoding.ids))
            except UnusableRowError as error:
                found.append(error)
        return found

    def _assemble(self, item: RenderedText, ids: list[int]) -> TokenizedText:
        mask = self.special.mask
        if mask is not None and mask.id in ids:
            raise UnusableRowError(RejectionReason.MASK_TOKEN_IN_TEXT, mask.text)
        data = item.text.encode()
        try:
            spans = token_spans(self.tokenizer, ids, data)
        except AlignmentError as error:
            raise UnusableRowError(RejectionReason.TOKENS_DO_NOT_COVER_TEXT, error.message) from error
        if item.is_plain:
            closing = [] if self.special.eos is None else [self.special.eos.id]
            before, after = [[0, 0]] * len(self.leading_ids), [[len(data)] * 2] * len(closing)
            ids = [*self.leading_ids, *ids, *closing]
            parts = [np.array(part, dtype=np.int64).reshape(-1, 2) for part in (before, after)]
            spans = np.concatenate([parts[0], spans, parts[1]])
        return TokenizedText(np.array(ids, dtype=np.int32), spans, item.answers, item.is_plain)


def _leading_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text (a beginning-of-sequence token, or nothing)."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _form_names(normalizer: Any) -> list[str]:
    """Names of the Unicode forms among a tokenizer's normalisers, in order."""

    def names(step: dict[str, Any]) -> list[str]:
        if step["type"] == "Sequence":
            return [name for part in step["normalizers"] for name in names(part)]
        return [step["type"]] if step["type"] in _UNICODE_FORMS else []

    return names(json.loads(normalizer.__getstate__()))


@lru_cache(maxsize=8)
def text_side(folder: str, fingerprint: str, options: tuple[tuple[str, object], ...]) -> TextSide:
    """A side that stays loaded in this process: a worker prepares many batches with the same pair.

    The fingerprint is part of the key, so that a folder that changed is read again.
    """
    return TextSide(folder, dict(options))

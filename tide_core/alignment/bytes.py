"""Which bytes of a text each token stands for.

Byte-level BPE writes every byte as one printable character; SentencePiece-like tokenizers write text with a
space marker and fall back to ``<0xNN>`` for single bytes. Both are undone here per token, from the
tokenizer's own decoder, never through ``decode`` of the whole: decoding may clean up spaces, and one
character may be cut over several tokens (a CJK character over three).
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64
from tokenizers import Tokenizer

from tide_core.contracts.errors import AlignmentError, TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable bytes stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()


class TokenTable:
    """The bytes of every token of one tokenizer, and which of them are added (special) tokens.

    Attributes:
        size: one more than the largest id.
        lengths: int32 ``[vocab]``, bytes of each token; -1 where the tokenizer has no such id.
        is_added: bool ``[vocab]``, tokens matched as a whole before the model runs.
        is_special: bool ``[vocab]``, added tokens that are marked as special.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self.size = max(max(vocabulary.values(), default=-1), max(added, default=-1)) + 1
        self._strings: list[str | None] = [None] * self.size
        for text, token_id in vocabulary.items():
            self._strings[token_id] = text
        self.is_added = np.zeros(self.size, dtype=np.bool_)
        self.is_special = np.zeros(self.size, dtype=np.bool_)
        for token_id, token in added.items():
            self._strings[token_id] = token.content
            self.is_added[token_id] = True
            self.is_special[token_id] = token.special
        self._rules = _decoding_rules(tokenizer)

    @cached_property
    def byte_strings(self) -> list[bytes]:
        """The bytes of every id (empty where there is no such id); built at the first use."""
        return [self.bytes_of(token_id) or b"" for token_id in range(self.size)]

    @cached_property
    def lengths(self) -> Int32[np.ndarray, " vocab"]:
        """Bytes of each token, -1 where the tokenizer has no such id."""
        counted = np.fromiter(map(len, self.byte_strings), dtype=np.int32, count=self.size)
        absent = np.fromiter((text is None for text in self._strings), dtype=np.bool_, count=self.size)
        return np.where(absent, np.int32(-1), counted)

    def bytes_of(self, token_id: int) -> bytes | None:
        """The bytes of one token, or None where the tokenizer has no such id."""
        text = self._strings[token_id]
        if text is None:
            return None
        if self.is_special[token_id]:
            return text.encode("utf-8")
        return self._rules.added_to_bytes(text) if self.is_added[token_id] else self._rules.to_bytes(text)

    def equal_prefix(self, other: TokenTable) -> int:
        """Length of the longest id prefix on which both tables hold the same bytes."""
        same_rules = self._rules == other._rules
        limit = min(self.size, other.size)
        added = self.is_added[:limit] | other.is_added[:limit]
        pairs = zip(self._strings, other._strings, added.tolist(), strict=False)
        for token_id, (mine, theirs, is_added) in enumerate(pairs):
            if mine is None or theirs is None:
                return token_id
            # Equal strings under equal rules are equal bytes: the quick way for nearly every id.
            if same_rules and not is_added and mine == theirs:
                continue
            if self.bytes_of(token_id) != other.bytes_of(token_id):
                return token_id
        return limit


class _ByteLevel:
    """Byte-level BPE: one character, one byte."""

    def to_bytes(self, text: str) -> bytes:
        try:
            return bytes(map(BYTE_ALPHABET.__getitem__, text))
        except KeyError:  # a base token that was put in as raw text
            return text.encode("utf-8")

    def added_to_bytes(self, text: str) -> bytes:
        return text.encode("utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByteLevel)

    __hash__ = None  # type: ignore[assignment]


class _ByteFallback:
    """SentencePiece-like: a marker for the space, ``<0xNN>`` for a single byte."""

    def __init__(self, replacements: list[tuple[str, str]]) -> None:
        self.replacements = replacements

    def to_bytes(self, text: str) -> bytes:
        match = _BYTE_TOKEN.fullmatch(text)
        if match:
            return bytes([int(match[1], 16)])
        for marker, content in self.replacements:
            text = text.replace(marker, content)
        return text.encode("utf-8")

    def added_to_bytes(self, text: str) -> bytes:
        # Gemma lists runs of its space marker as added tokens; the model finds them in runs of spaces.
        return self.to_bytes(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByteFallback) and other.replacements == self.replacements

    __hash__ = None  # type: ignore[assignment]


def _decoding_rules(tokenizer: Tokenizer) -> _ByteLevel | _ByteFallback:
    """How this tokenizer's decoder turns a token into bytes.

    Raises:
        TokenizerError: neither byte-level nor SentencePiece-like (WordPiece drops spaces, for example).
    """
    steps = _flatten(json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else None)
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _ByteLevel()
    if "Metaspace" in kinds or "ByteFallback" in kinds:
        replacements = [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        for step in steps:
            if step["type"] == "Replace" and "String" in step["pattern"]:
                replacements.append((step["pattern"]["String"], step["content"]))
        return _ByteFallback(replacements)
    raise TokenizerError(
        f"cannot tell the bytes of this tokenizer's tokens (decoder: {sorted(kinds) or 'none'}); "
        "byte-level BPE and SentencePiece with byte fallback are supported",
        code="unsupported_tokenizer",
        param="tokenizer",
    )


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a decoder that may be a (nested) sequence."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _flatten(part)]
    return [decoder]


_TABLES: weakref.WeakKeyDictionary[Tokenizer, tuple[int, TokenTable]] = weakref.WeakKeyDictionary()


def token_table(tokenizer: Any) -> TokenTable:
    """The (cached) byte table of a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.

    Raises:
        TokenizerError: not a fast tokenizer, or of a kind whose bytes cannot be told.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(
            f"a fast tokenizer (tokenizer.json) is needed, not {type(tokenizer).__name__}", param="tokenizer"
        )
    size = backend.get_vocab_size(with_added_tokens=True)
    cached = _TABLES.get(backend)
    # Tokens may have been added since: the size tells.
    if cached is None or cached[0] != size:
        cached = (size, TokenTable(backend))
        _TABLES[backend] = cached
    return cached[1]


def token_byte_lengths(
    tokenizer: Any, ids: Sequence[int] | Int[np.ndarray, " seq"]
) -> Int64[np.ndarray, " seq"]:
    """How many bytes of text each token stands for.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.
        ids: token ids.

    Returns:
        int64 ``[seq]``, in bytes of UTF-8.

    Raises:
        TokenizerError: an id that the tokenizer does not have (named), or an unsupported tokenizer.
    """
    table = token_table(tokenizer)
    wanted = _checked_ids(table, ids)
    lengths: Int64[np.ndarray, " seq"] = np.take(table.lengths, wanted).astype(np.int64)
    return lengths


def token_bytes(tokenizer: Any, ids: Sequence[int] | Int[np.ndarray, " seq"]) -> list[bytes]:
    """The byte string of each token; may be a part of a character. Raises as ``token_byte_lengths``."""
    table = token_table(tokenizer)
    return [table.byte_strings[token_id] for token_id in _checked_ids(table, ids).tolist()]


def _checked_ids(
    table: TokenTable, ids: Sequence[int] | Int[np.ndarray, " seq"]
) -> Int64[np.ndarray, " seq"]:
    wanted = np.asarray(ids, dtype=np.int64)
    is_outside = (wanted < 0) | (wanted >= table.size)
    is_outside |= table.lengths[np.where(is_outside, 0, wanted)] < 0
    if is_outside.any():
        first = int(wanted[is_outside][0])
        raise TokenizerError(
            f"id {first} is not a token of this tokenizer (its ids end at {table.size - 1})",
            code="unknown_token_id",
            param="ids",
        )
    return wanted


def token_spans(
    tokenizer: Any, ids: Sequence[int] | Int[np.ndarray, " seq"], text: bytes
) -> Int64[np.ndarray, "seq 2"]:
    """The byte range ``[start, end)`` of each token in the text that it came from.

    Ranges follow each other without a gap and cover the text. A space that a SentencePiece tokenizer puts
    before a text is not counted; white space swallowed by an added token belongs to that token.

    Raises:
        AlignmentError: the tokens do not spell the text (a normaliser changed it); says from which byte on.
    """
    table = token_table(tokenizer)
    wanted = _checked_ids(table, ids)
    pieces = [table.byte_strings[token_id] for token_id in wanted.tolist()]
    if b"".join(pieces) == text:
        ends = np.cumsum(table.lengths[wanted], dtype=np.int64)
    else:
        ends = np.array(_walk(pieces, table.is_added[wanted].tolist(), text), dtype=np.int64)
    starts = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
    return np.stack([starts, ends], axis=1)


def _walk(pieces: list[bytes], is_added: list[bool], text: bytes) -> list[int]:
    """Ends of the tokens in the text, segment by segment between added tokens."""
    ends: list[int] = []
    position = 0
    index = 0
    while index < len(pieces):
        if is_added[index]:
            position = _match_added(pieces[index], text, position)
            ends.append(position)
            index += 1
            continue
        stop = index
        while stop < len(pieces) and not is_added[stop]:
            stop += 1
        position = _match_segment(pieces[index:stop], text, position, ends)
        index = stop
    if position < len(text):
        # Only an added token swallows white space after itself; an ordinary one never does.
        if text[position:].strip() or not (is_added and is_added[-1]):
            raise _not_covered(text, position)
        ends[-1] = len(text)
    return ends


def _match_added(piece: bytes, text: bytes, position: int) -> int:
    """End of an added token, which may have swallowed white space before it."""
    found = position
    while not text.startswith(piece, found):
        if not text[found : found + 1].isspace():
            raise _not_covered(text, position)
        found += 1
    return found + len(piece)


def _match_segment(pieces: list[bytes], text: bytes, position: int, ends: list[int]) -> int:
    """Append the ends of ordinary tokens; a space that the tokenizer put in front counts nothing."""
    joined = b"".join(pieces)
    dropped = 0
    if not text.startswith(joined, position):
        if joined[:1] == b" " and text.startswith(joined[1:], position):
            dropped = 1
        else:
            # An added token before may have swallowed white space after itself.
            rest = text[position:]
            skipped = len(rest) - len(rest.lstrip())
            if not (ends and skipped and text.startswith(joined, position + skipped)):
                raise _not_covered(text, position)
            position += skipped
            ends[-1] = position
    for piece in pieces:
        position += len(piece) - dropped
        dropped = 0
        ends.append(position)
    return position


def _not_covered(text: bytes, position: int) -> AlignmentError:
    near = text[position : position + 24].decode("utf-8", errors="replace")
    return AlignmentError(
        f"the tokens do not spell the text from byte {position} on (near {near!r}): the tokenizer's "
        "normaliser changes it; normalise the text first",
        code="tokens_do_not_cover_text",
        param="text",
    )

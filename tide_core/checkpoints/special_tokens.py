"""The special tokens that the method needs: found in a tokenizer folder, confirmed against the tokenizer.

Nothing is assumed from a model's name: the same id is a mask to one tokenizer and a word to another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tide_core.checkpoints.tokenizer_folder import load_tokenizer, read_settings, token_text
from tide_core.contracts.errors import TokenizerError

_MASK_LIKE = re.compile(r"<\|?mask\|?>|\[mask\]", re.IGNORECASE)


@dataclass(frozen=True)
class SpecialToken:
    """One added token: its text and its id."""

    text: str
    id: int


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer folder says about its special tokens.

    Attributes:
        mask: what a hidden position holds; None where the tokenizer has no such token.
        eos: ends a text and pads sequences to a whole block; None where there is none.
        pad: pads batches; None where there is none.
        stop_ids: every id that ends a generation (the tokenizer's and the model config's), sorted.
    """

    mask: SpecialToken | None
    eos: SpecialToken | None
    pad: SpecialToken | None
    stop_ids: tuple[int, ...]


def find_special_tokens(folder: str | Path, tokenizer: Tokenizer | None = None) -> SpecialTokens:
    """Find mask, end-of-sequence and padding tokens of a tokenizer (or model) folder.

    Looked up in this order: ``tokenizer_config.json`` and ``special_tokens_map.json`` by name,
    ``config.json`` by id, and for the mask alone an added token that is written like one (``<|mask|>``,
    ``[MASK]``). Each is confirmed: its text must encode to exactly its id.

    Args:
        folder: folder with ``tokenizer.json``.
        tokenizer: the loaded tokenizer, if the caller has it already.

    Raises:
        TokenizerError: no tokenizer, or a token whose text and id contradict each other.
    """
    tokenizer = tokenizer or load_tokenizer(folder)
    named = read_settings(folder, "special_tokens_map.json") | read_settings(folder, "tokenizer_config.json")
    model = read_settings(folder, "config.json")
    mask = _lookup("mask", named, model, tokenizer) or _mask_by_its_looks(tokenizer)
    eos = _lookup("eos", named, model, tokenizer)
    stop_ids = {eos.id} if eos else set()
    stop_ids.update(
        token_id for token_id in _ids(model, "eos") if tokenizer.id_to_token(token_id) is not None
    )
    pad = _lookup("pad", named, model, tokenizer)
    return SpecialTokens(mask, eos, pad, tuple(sorted(stop_ids)))


def require_mask_token(folder: str | Path, tokenizer: Tokenizer | None = None) -> SpecialToken:
    """The mask token of a tokenizer folder.

    Raises:
        TokenizerError: code ``tokenizer_without_mask_token``, with the command that adds one.
    """
    mask = find_special_tokens(folder, tokenizer).mask
    if mask is None:
        raise TokenizerError(
            f"the tokenizer in {folder} has no mask token, which diffusion needs; add one with "
            f"`tide convert --add-mask-token {folder} TARGET`, or set student.add_mask_token in the job",
            code="tokenizer_without_mask_token",
            param="tokenizer",
        )
    return mask


def require_eos_token(folder: str | Path, tokenizer: Tokenizer | None = None) -> SpecialToken:
    """The end-of-sequence token of a tokenizer folder.

    Raises:
        TokenizerError: code ``tokenizer_without_eos_token``.
    """
    eos = find_special_tokens(folder, tokenizer).eos
    if eos is None:
        raise TokenizerError(
            f"the tokenizer in {folder} names no end-of-sequence token, which sequences are padded with; set "
            "eos_token in its tokenizer_config.json",
            code="tokenizer_without_eos_token",
            param="tokenizer",
        )
    return eos


def _lookup(
    kind: str, named: dict[str, Any], model: dict[str, Any], tokenizer: Tokenizer
) -> SpecialToken | None:
    text = token_text(named.get(f"{kind}_token"))
    if text is not None:
        return _confirmed(kind, text, tokenizer)
    for token_id in _ids(model, kind)[:1]:
        text = tokenizer.id_to_token(token_id)
        if text is None:
            raise TokenizerError(
                f"config.json says {kind}_token_id {token_id}, which the tokenizer does not have",
                code="special_token_contradiction",
                param=f"{kind}_token_id",
            )
        return _confirmed(kind, text, tokenizer)
    return None


def _ids(model: dict[str, Any], kind: str) -> list[int]:
    """A config's ``<kind>_token_id``: a number, a list of numbers, or nothing."""
    value = model.get(f"{kind}_token_id")
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if isinstance(entry, int)]


def _mask_by_its_looks(tokenizer: Tokenizer) -> SpecialToken | None:
    """An added token written like a mask; refuses to choose between several."""
    added = tokenizer.get_added_tokens_decoder().values()
    texts = sorted(token.content for token in added if _MASK_LIKE.fullmatch(token.content))
    if len(texts) > 1:
        raise TokenizerError(
            f"several tokens look like a mask token ({', '.join(texts)}): name one as mask_token in "
            "tokenizer_config.json",
            code="special_token_contradiction",
            param="mask_token",
        )
    return _confirmed("mask", texts[0], tokenizer) if texts else None


def _confirmed(kind: str, text: str, tokenizer: Tokenizer) -> SpecialToken:
    """Check that the text is one token and encodes to its own id."""
    token_id = tokenizer.token_to_id(text)
    encoded = tokenizer.encode(text, add_special_tokens=False).ids
    if token_id is None or encoded != [token_id]:
        raise TokenizerError(
            f"{kind}_token {text!r} is not one token of the tokenizer: it encodes to {encoded} "
            f"(its own id: {token_id}); add it to tokenizer.json as an added token",
            code="special_token_contradiction",
            param=f"{kind}_token",
        )
    return SpecialToken(text, token_id)

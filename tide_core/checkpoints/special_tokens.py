"""The special tokens that the method needs: found in a tokenizer folder, confirmed against the tokenizer.

Nothing is assumed from a model's name: the same id is a mask to one tokenizer and a word to another.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tide_core.checkpoints.headers import CONFIG_NAME
from tide_core.checkpoints.tokenizer_folder import (
    NAMES_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    load_tokenizer,
    read_settings,
    token_text,
)
from tide_core.contracts.errors import TokenizerError

DEFAULT_MASK_TOKEN = "<|mask|>"
"""How a mask token that Tide adds is written; the dLLM tools write it so too."""
MASK_SPELLINGS = frozenset({DEFAULT_MASK_TOKEN, "<mask>", "[mask]", "<|mdm_mask|>", "|<mask>|", "<[mask]>"})
"""Under which published diffusion models keep a mask among their added tokens without naming it as such, in
small letters: SDAR has ``<MASK>``, LLaDA ``<|mdm_mask|>``, Fast-dLLM ``|<MASK>|``, iLLaDA ``<[MASK]>``."""


@dataclass(frozen=True)
class SpecialToken:
    """One added token.

    Attributes:
        text: how it is written; empty for an id that ``config.json`` names and the tokenizer has no text for.
        id: its id.
    """

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


def find_special_tokens(folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> SpecialTokens:
    """Find mask, end-of-sequence and padding tokens of a tokenizer (or model) folder.

    Looked up in this order: ``tokenizer_config.json`` and ``special_tokens_map.json`` by name,
    ``config.json`` by id, and for the mask alone an added token that is written like one
    (:data:`MASK_SPELLINGS`). Each is confirmed: its text must encode to exactly its id.

    Args:
        folder: folder with ``tokenizer.json``.
        tokenizer: the loaded tokenizer, if the caller has it already.

    Raises:
        TokenizerError: no tokenizer, or a token whose text and id contradict each other.
    """
    tokenizer = tokenizer or load_tokenizer(folder)
    named, model = _read_names(folder), read_settings(folder, CONFIG_NAME)
    mask = find_mask_token(folder, tokenizer)
    if mask is not None:
        _require_text("mask", mask)
    eos = _lookup("eos", named, model, tokenizer)
    stop_ids = {eos.id} if eos else set()
    stop_ids.update(
        token_id for token_id in _ids(model, "eos") if tokenizer.id_to_token(token_id) is not None
    )
    pad = _lookup("pad", named, model, tokenizer)
    return SpecialTokens(mask, eos, pad, tuple(sorted(stop_ids)))


def find_mask_token(
    folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> SpecialToken | None:
    """The mask token of a model or tokenizer folder; None without a tokenizer, or where it has none.

    Looked up in this order: by the name that the tokenizer's configuration gives it, by ``mask_token_id`` in
    ``config.json``, and by its spelling among the added tokens.

    Args:
        folder: model or tokenizer folder.
        tokenizer: the loaded tokenizer, if the caller has it already.

    Raises:
        TokenizerError: name and id contradict each other, the name is not one token, or several tokens could
            be the mask.
    """
    if tokenizer is None:
        if not (Path(folder) / TOKENIZER_FILE).is_file():
            return None
        tokenizer = load_tokenizer(folder)
    ids = _ids(read_settings(folder, CONFIG_NAME), "mask")[:1]
    text = token_text(_read_names(folder).get("mask_token"))
    if text is None and ids:
        text = tokenizer.id_to_token(ids[0])
        return _confirm("mask", text, tokenizer) if text is not None else SpecialToken("", ids[0])
    mask = _confirm("mask", text, tokenizer) if text is not None else _find_mask_by_spelling(tokenizer)
    if mask is not None and ids:
        confirm_mask_id(ids[0], mask)
    return mask


def confirm_mask_id(configured: object, mask: SpecialToken) -> None:
    """See that a config names no other id than the tokenizer's.

    Args:
        configured: ``mask_token_id`` of the config; None where it names none.
        mask: the tokenizer's mask token.

    Raises:
        TokenizerError: code ``special_token_contradiction``.
    """
    if configured not in (None, mask.id):
        raise TokenizerError(
            f"config.json says mask_token_id {configured}, the tokenizer gives {mask.text!r} the id "
            f"{mask.id}: correct one of them",
            code="special_token_contradiction",
            param="mask_token_id",
        )


def require_mask_token(folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> SpecialToken:
    """The mask token of a tokenizer folder, with its text.

    Raises:
        TokenizerError: code ``tokenizer_without_mask_token``, with the command that adds one; or as in
            :func:`find_mask_token`.
    """
    mask = find_mask_token(folder, tokenizer or load_tokenizer(folder))
    if mask is None:
        raise TokenizerError(
            f"the tokenizer in {folder} has no mask token, which diffusion needs; add one with "
            f"`tide convert --add-mask-token {folder} TARGET`, or set student.add_mask_token in the job",
            code="tokenizer_without_mask_token",
            param="tokenizer",
        )
    return _require_text("mask", mask)


def require_eos_token(folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> SpecialToken:
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
        return _confirm(kind, text, tokenizer)
    for token_id in _ids(model, kind)[:1]:
        text = tokenizer.id_to_token(token_id)
        token = SpecialToken("", token_id) if text is None else _confirm(kind, text, tokenizer)
        return _require_text(kind, token)
    return None


def _read_names(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What the tokenizer's files call its special tokens."""
    settings = read_settings(folder, SETTINGS_FILE)
    return read_settings(folder, NAMES_FILE) | {
        key: name for key, name in settings.items() if name is not None
    }


def _require_text(kind: str, token: SpecialToken) -> SpecialToken:
    if not token.text:
        raise TokenizerError(
            f"config.json says {kind}_token_id {token.id}, which the tokenizer does not have",
            code="special_token_contradiction",
            param=f"{kind}_token_id",
        )
    return token


def _ids(model: dict[str, Any], kind: str) -> list[int]:
    """A config's ``<kind>_token_id``: a number, a list of numbers, or nothing."""
    value = model.get(f"{kind}_token_id")
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if isinstance(entry, int)]


def _find_mask_by_spelling(tokenizer: Tokenizer) -> SpecialToken | None:
    """An added token written like a mask; refuses to choose between several."""
    added = tokenizer.get_added_tokens_decoder().values()
    texts = sorted(token.content for token in added if token.content.lower() in MASK_SPELLINGS)
    if len(texts) > 1:
        raise TokenizerError(
            f"several tokens look like a mask token ({', '.join(texts)}): name one as mask_token in "
            "tokenizer_config.json",
            code="special_token_contradiction",
            param="mask_token",
        )
    return _confirm("mask", texts[0], tokenizer) if texts else None


def _confirm(kind: str, text: str, tokenizer: Tokenizer) -> SpecialToken:
    """Check that the text is one token and encodes to its own id."""
    token_id = tokenizer.token_to_id(text)
    encoded = tokenizer.encode(text, add_special_tokens=False).ids
    if token_id is None or encoded != [token_id]:
        own = "it has no id" if token_id is None else f"its own id: {token_id}"
        raise TokenizerError(
            f"{kind}_token {text!r} is not one token of the tokenizer: it encodes to {encoded} ({own}); "
            "add it to tokenizer.json as an added token",
            code="special_token_contradiction",
            param=f"{kind}_token",
        )
    return SpecialToken(text, token_id)

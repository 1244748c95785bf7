"""A mask token for a tokenizer that has none, added to the files of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tide_core.checkpoints.special_tokens import DEFAULT_MASK_TOKEN, SpecialToken, find_mask_token
from tide_core.checkpoints.tokenizer_folder import SETTINGS_FILE, TOKENIZER_FILE, read_settings
from tide_core.contracts.errors import TokenizerError


def ensure_mask_token(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> SpecialToken:
    """The mask token of ``source``; where it has none, one is added to the tokenizer's files in ``target``.

    A mask that the source has under any name stays the only one. Where the source's ``config.json`` names an
    id for which the tokenizer has no text, that id gets the text.

    Args:
        source: model or tokenizer folder, as it was found.
        target: folder with a copy of the source's tokenizer files.

    Raises:
        TokenizerError: the source contradicts itself, or the id that it names cannot get a text.
    """
    found = find_mask_token(source)
    if found is not None and found.text:
        return found
    return append_mask_token(target, token_id=None if found is None else found.id)


def append_mask_token(
    folder: str | os.PathLike[str], text: str = DEFAULT_MASK_TOKEN, *, token_id: int | None = None
) -> SpecialToken:
    """Add a mask token to the tokenizer files in a folder, in place, behind the largest id in use.

    Args:
        folder: with ``tokenizer.json``.
        text: how the token is written.
        token_id: the id that it must get; without it, the next one.

    Raises:
        TokenizerError: there is no ``tokenizer.json``, it holds ``text`` already, or the next id is not
            ``token_id``.
    """
    path = Path(folder)
    tokenizer = read_settings(path, TOKENIZER_FILE)
    ids = dict(token_ids(tokenizer))
    if not ids:
        raise TokenizerError(f"there is no token in {path / TOKENIZER_FILE}", param="tokenizer")
    if text in ids:
        raise TokenizerError(f"{path} already has the token {text!r}", param="mask_token")
    token = SpecialToken(text, max(ids.values()) + 1)
    if token_id not in (None, token.id):
        raise TokenizerError(
            f"config.json says mask_token_id {token_id}, but the next id of the tokenizer is {token.id}: add "
            "the token with that id to tokenizer.json, or correct config.json",
            code="special_token_contradiction",
            param="mask_token_id",
        )
    entry = {"content": text, "single_word": False, "lstrip": False, "rstrip": False}
    entry |= {"normalized": False, "special": True}
    tokenizer["added_tokens"] = [*(tokenizer.get("added_tokens") or []), {"id": token.id, **entry}]
    _write(path / TOKENIZER_FILE, tokenizer)
    settings = read_settings(path, SETTINGS_FILE) or {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["mask_token"] = text
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"][str(token.id)] = entry
    _write(path / SETTINGS_FILE, settings)
    return token


def token_ids(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Text and id of every token in the fields of a ``tokenizer.json``, added ones last."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((str(entry[0]), index) for index, entry in enumerate(vocabulary))
    for entry in tokenizer.get("added_tokens") or []:
        yield str(entry["content"]), int(entry["id"])


def _write(path: Path, payload: dict[str, Any]) -> None:
    path.write_text(json.dumps(payload, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

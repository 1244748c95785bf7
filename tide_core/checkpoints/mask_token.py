"""Which token is the mask: read from the tokenizer's files, confirmed against ``config.json``, never
assumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tide_core.checkpoints.headers import CONFIG_NAME, read_json
from tide_core.contracts.errors import TokenizerError

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
DEFAULT_MASK_TOKEN = "<|mask|>"
# Spellings under which published diffusion models keep a mask among their added tokens without naming it as
# such.
KNOWN_MASK_TOKENS = (DEFAULT_MASK_TOKEN, "<|MASK|>", "<|mdm_mask|>", "<mask>", "[MASK]")


@dataclass(frozen=True)
class MaskToken:
    """The mask token's id and spelling."""

    id: int
    content: str


def find_mask_token(folder: str | os.PathLike[str]) -> MaskToken | None:
    """The mask token of a model or tokenizer folder, or None when its tokenizer has none.

    Looked up by the name that the tokenizer's configuration gives it, else among the added tokens under the
    usual spellings.

    Raises:
        TokenizerError: several tokens could be it, the named one has no id, or ``config.json`` names another
        id.
    """
    path = Path(folder)
    if not (path / TOKENIZER_NAME).is_file():
        return None
    tokenizer = _read(path / TOKENIZER_NAME)
    name = _named_mask(path)
    ids = dict(token_ids(tokenizer))
    if name is None:
        added = [str(entry.get("content")) for entry in tokenizer.get("added_tokens") or []]
        found = [spelling for spelling in KNOWN_MASK_TOKENS if spelling in added]
        if len(found) > 1:
            raise TokenizerError(
                f"{path} has several tokens that could be the mask: {', '.join(found)}. Name one as "
                f"mask_token in {TOKENIZER_CONFIG_NAME}.",
                param="mask_token",
            )
        name = found[0] if found else None
    if name is None:
        return None
    if name not in ids:
        raise TokenizerError(f"{path} names {name!r} as mask token but gives it no id.", param="mask_token")
    _confirm(path, ids[name], name)
    return MaskToken(ids[name], name)


def require_mask_token(folder: str | os.PathLike[str]) -> MaskToken:
    """``find_mask_token``, for whoever cannot do without.

    Raises:
        TokenizerError: the tokenizer has no mask token; the message offers to add one.
    """
    token = find_mask_token(folder)
    if token is None:
        raise TokenizerError(
            f"The tokenizer of {folder} has no mask token. Set add_mask_token (tide convert "
            f"--add-mask-token) to add {DEFAULT_MASK_TOKEN!r} with a row of the embedding.",
            code="tokenizer_without_mask_token",
            param="mask_token",
        )
    return token


def append_mask_token(folder: str | os.PathLike[str], content: str = DEFAULT_MASK_TOKEN) -> MaskToken:
    """Add a mask token to the tokenizer files in a folder, in place, behind the largest id in use.

    Raises:
        TokenizerError: there is no ``tokenizer.json``, or it holds ``content`` already.
    """
    path = Path(folder)
    tokenizer = _read(path / TOKENIZER_NAME)
    ids = dict(token_ids(tokenizer))
    if content in ids:
        raise TokenizerError(f"{path} already has the token {content!r}.", param="mask_token")
    token = MaskToken(max(ids.values()) + 1, content)
    entry = {"content": content, "single_word": False, "lstrip": False, "rstrip": False}
    entry |= {"normalized": False, "special": True}
    tokenizer["added_tokens"] = [*(tokenizer.get("added_tokens") or []), {"id": token.id, **entry}]
    _write(path / TOKENIZER_NAME, tokenizer)
    settings_path = path / TOKENIZER_CONFIG_NAME
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if settings_path.is_file():
        settings = _read(settings_path)
    settings["mask_token"] = content
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"][str(token.id)] = entry
    _write(settings_path, settings)
    return token


def _named_mask(folder: Path) -> str | None:
    for name in (TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_NAME):
        if (folder / name).is_file():
            mask = _read(folder / name).get("mask_token")
            content = mask.get("content") if isinstance(mask, dict) else mask
            if content:
                return str(content)
    return None


def token_ids(tokenizer: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Content and id of every token in the fields of a ``tokenizer.json``, added ones last."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((str(entry[0]), index) for index, entry in enumerate(vocabulary))
    for entry in tokenizer.get("added_tokens") or []:
        yield str(entry["content"]), int(entry["id"])


def _confirm(folder: Path, token_id: int, name: str) -> None:
    if not (folder / CONFIG_NAME).is_file():
        return
    configured = _read(folder / CONFIG_NAME).get("mask_token_id")
    if configured is not None and configured != token_id:
        raise TokenizerError(
            f"{CONFIG_NAME} says mask_token_id {configured}, the tokenizer gives {name!r} the id {token_id}: "
            "correct one of them.",
            param="mask_token_id",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except Exception as error:
        raise TokenizerError(f"{path} cannot be read: {error}", param=path.name) from error


def _write(path: Path, payload: dict[str, Any]) -> None:
    path.write_text(json.dumps(payload, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

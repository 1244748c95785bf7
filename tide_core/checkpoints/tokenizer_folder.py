"""Read a tokenizer folder in the Hugging Face layout, without transformers.

Only data is read: ``tokenizer.json`` (required), ``tokenizer_config.json``, ``special_tokens_map.json``,
``config.json`` and ``chat_template.jinja`` (each optional). No code of a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tide_core.contracts.errors import TokenizerError

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
NAMES_FILE = "special_tokens_map.json"

TOKENIZER_FILES = (
    TOKENIZER_FILE,
    SETTINGS_FILE,
    NAMES_FILE,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    TEMPLATE_FILE,
    "chat_template.json",
)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Load ``tokenizer.json`` of a model or tokenizer folder.

    Truncation and padding that the file may carry are switched off: Tide cuts and pads itself.

    Raises:
        TokenizerError: the file is missing or is not a tokenizer.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise TokenizerError(
            f"there is no {TOKENIZER_FILE} in {folder}: save the tokenizer with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
            code="tokenizer_not_found",
            param="tokenizer",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise TokenizerError(
            f"{path} is not a readable tokenizer (JSON of the tokenizers library): {error}", param="tokenizer"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_settings(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """Read one of the folder's JSON objects; a file that is not there is an empty object.

    Raises:
        TokenizerError: the file is there but is not a JSON object.
    """
    path = Path(folder) / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}", param=name) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object", param=name)
    return value


def read_chat_template(folder: str | os.PathLike[str]) -> str | None:
    """The chat template's source text: ``chat_template.jinja`` first, else the entry in the config.

    A config may hold several named templates; the one called ``default`` is taken.
    """
    path = Path(folder) / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    entry = read_settings(folder, SETTINGS_FILE).get("chat_template")
    if isinstance(entry, list):
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
        entry = named.get("default")
    if entry is None or isinstance(entry, str):
        return entry
    raise TokenizerError(
        f"chat_template in {folder}/tokenizer_config.json must be text", param="chat_template"
    )


def token_text(entry: object) -> str | None:
    """The text of a special token as configs write it: a string, or an object with ``content``."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def tokenizer_fingerprint(folder: str | os.PathLike[str]) -> str:
    """Hex digest of everything that decides ids: the tokenizer, its template and special tokens."""
    digest = hashlib.blake2b(digest_size=16)
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        load_tokenizer(folder)  # raises the error that explains
    digest.update(path.read_bytes())
    settings = read_settings(folder, SETTINGS_FILE)
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    more = [read_chat_template(folder), named, read_settings(folder, NAMES_FILE)]
    digest.update(json.dumps(more, sort_keys=True).encode())
    return digest.hexdigest()


def copy_tokenizer(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Path]:
    """Copy tokenizer and chat template files from one folder to another; the files written.

    Raises:
        TokenizerError: the source has no ``tokenizer.json``.
    """
    source_path, target_path = Path(source), Path(target)
    if not (source_path / TOKENIZER_FILE).is_file():
        raise TokenizerError(
            f"{source_path} has no {TOKENIZER_FILE}: only fast tokenizers are supported; save it with "
            "transformers first.",
            param="tokenizer",
        )
    target_path.mkdir(parents=True, exist_ok=True)
    if source_path.resolve() == target_path.resolve():
        return []
    names = [name for name in TOKENIZER_FILES if (source_path / name).is_file()]
    return [Path(shutil.copyfile(source_path / name, target_path / name)) for name in names]

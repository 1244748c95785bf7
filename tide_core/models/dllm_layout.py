"""What the dLLM tools (github.com/ZHZisZZ/dllm, their "a2d" models) ask of a model folder beyond ours.

Weights and ``config.json`` are alike: the causal family's key names, and the ``model_type`` and
``architectures`` of a student. Fields of ours (``mask_token_id``, ``block_size``) stay in ``config.json``:
transformers keeps what it does not know, also when the tools save the model again. What differs is the
tokenizer: on loading, the tools declare ``<|mask|>`` to be the mask token, whatever the folder
calls it, and add it behind the vocabulary where it is missing; and they need a named end or padding token.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tide_core.checkpoints.headers import read_json
from tide_core.checkpoints.mask_addition import token_ids
from tide_core.checkpoints.special_tokens import DEFAULT_MASK_TOKEN, SpecialToken
from tide_core.checkpoints.tokenizer_folder import SETTINGS_FILE, TOKENIZER_FILE
from tide_core.contracts.errors import TokenizerError


def fit_tokenizer(folder: str | os.PathLike[str], mask: SpecialToken, eos_token_ids: tuple[int, ...]) -> None:
    """Name mask and end token in ``tokenizer_config.json`` as the dLLM tools need them, in place.

    Args:
        folder: with the tokenizer's files.
        mask: the model's mask token.
        eos_token_ids: of the model; the first one's token becomes the end token where none is named.

    Raises:
        TokenizerError: the mask token is spelled otherwise, so that the tools would take an untrained id for
            it; or neither the tokenizer nor the model names an end token.
    """
    path = Path(folder)
    if mask.text != DEFAULT_MASK_TOKEN:
        raise TokenizerError(
            f"The dLLM tools take {DEFAULT_MASK_TOKEN!r} for the mask token; this model was trained with "
            f"{mask.text!r} (id {mask.id}), so that they would sample from an untrained token. Use tide "
            "sample, or train a student whose mask token has that name (add_mask_token).",
            code="mask_token_mismatch",
            param="mask_token",
        )
    settings_path = path / SETTINGS_FILE
    settings: dict[str, Any] = read_json(settings_path) if settings_path.is_file() else {}
    settings["mask_token"] = mask.text
    if not settings.get("eos_token") and not settings.get("pad_token"):
        settings["eos_token"] = _end_token(path, eos_token_ids)
    settings_path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _end_token(folder: Path, eos_token_ids: tuple[int, ...]) -> str:
    contents = {token_id: content for content, token_id in token_ids(read_json(folder / TOKENIZER_FILE))}
    for token_id in eos_token_ids:
        if token_id in contents:
            return contents[token_id]
    raise TokenizerError(
        f"The dLLM tools need an end token: name eos_token in {SETTINGS_FILE}, or eos_token_id in "
        "config.json.",
        param="eos_token",
    )

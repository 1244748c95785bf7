"""What stands beside the weights in an exported model folder: tokenizer, chat template, model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tide_core.checkpoints.tokenizer_folder import (
    NAMES_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
)
from tide_core.contracts.errors import TokenizerError
from tide_core.contracts.families import find_family

CARD_NAME = "README.md"
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


@dataclass(frozen=True)
class ModelCard:
    """What a model card tells: a title, where the model comes from, how it was trained, what it reached.

    Attributes:
        title: heading.
        origin: name or path of the model it was made from, if any.
        summary: one paragraph.
        training: settings by name, shown as a table.
        results: figures by name, shown as a table.
    """

    title: str
    summary: str
    origin: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)


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


def render_card(card: ModelCard, model_type: str) -> str:
    """The card as Markdown, with the metadata block of the Hugging Face hub and the lines that load the
    model.
    """
    family = find_family(model_type)
    assert family is not None, "a student's model_type is one of the table"
    parts = [
        "---",
        "library_name: transformers",
        "tags: [diffusion-language-model, block-diffusion, a2d]",
        *([f"base_model: {card.origin}"] if card.origin else []),
        "---",
        f"\n# {card.title}\n",
        card.summary,
        *_table("Training", card.training),
        *_table("Results", card.results),
        _USAGE.format(family=family.class_stem, model_type=model_type),
    ]
    return "\n".join(parts)


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    return [
        f"\n## {title}\n",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]


_USAGE = """
## Use

Sample with `tide sample FOLDER "prompt"`. In the layout of the dLLM tools (`model_type` `{model_type}`);
plain transformers loads it with its {family} classes:

```python
from transformers import {family}Config, {family}ForCausalLM

config = {family}Config.from_pretrained(folder)
model = {family}ForCausalLM.from_pretrained(folder, config=config)
logits = model(input_ids, attention_mask=mask, position_ids=positions).logits
```

`mask` is boolean, [batch, 1, query, key], True where a query may attend: blocks see themselves and earlier
blocks. Without it transformers attends causally, which this model was not trained for. Logits are read at the
masked position itself, without a shift.
"""

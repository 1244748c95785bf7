"""What stands beside the weights in an exported model folder: tokenizer, chat template, model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tide_core.contracts.families import find_family

CARD_NAME = "README.md"


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

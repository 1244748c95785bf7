"""The reference of the chart's values: `python -m tools` writes docs/helm-values.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
VALUES = ROOT / "helm" / "tide" / "values.yaml"
TARGET = ROOT / "docs" / "helm-values.md"

_INTRODUCTION = """\
# Values of the chart

This page is generated from `helm/tide/values.yaml` by `python -m tools`.

| value | default | meaning |
| --- | --- | --- |
"""


def document() -> str:
    """The page as it is to be."""
    text = VALUES.read_text()
    meanings = _meanings(text)
    rows = [
        f"| `{path}` | `{json.dumps(value)}` | {meanings.get(path, '')} |"
        for path, value in _leaves(yaml.safe_load(text), "", meanings)
    ]
    return _INTRODUCTION + "\n".join(rows) + "\n"


def _meanings(text: str) -> dict[str, str]:
    """Path -> the comment above it that begins with two dashes."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        if match := re.match(r" *# -- (.*)", line):
            comment = match[1].replace("|", "\\|")
        elif match := re.match(r"( *)([A-Za-z][\w-]*):", line):
            path = [(indent, key) for indent, key in path if indent < len(match[1])]
            path.append((len(match[1]), match[2]))
            if comment:
                found[".".join(key for _, key in path)] = comment
            comment = ""
    return found


def _leaves(value: Any, path: str, meanings: dict[str, str]) -> list[tuple[str, Any]]:
    is_map = isinstance(value, dict) and value
    if not is_map or path.endswith((".requests", ".limits", ".labels")):
        return [(path, value)]
    own = [] if path not in meanings else [(path, "...")]
    return own + [
        leaf
        for key, below in value.items()
        for leaf in _leaves(below, f"{path}.{key}" if path else key, meanings)
    ]

"""The job spec's reference: `python -m tools` writes docs/job-spec.md from the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tide_core.contracts.job import JobSpec
from tide_core.contracts.objective import Pipeline, Variant, expand_variant

TARGET = Path(__file__).parent.parent / "docs" / "job-spec.md"

_INTRODUCTION = """\
# The job spec

This page lists what `POST /v1/jobs` accepts. It is generated from the schema by `python -m tools`.

Unknown fields are refused. The answer holds the resolved spec, in which every default below is written out;
to repeat a job, post its resolved spec again.
"""
_VARIANTS = """\
## Named variants

`objective` is a list of terms that are summed, or the name of a variant of the TIDE paper (arXiv 2604.26951).
The terms of a variant depend on the pipeline.

| variant | pipeline | terms | teacher context |
| --- | --- | --- | --- |
"""


def document() -> str:
    """The text of the page."""
    schema = JobSpec.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    sections = [_INTRODUCTION, _section("JobSpec", schema)]
    sections += [
        _section(name, definitions[name])
        for name in _in_reading_order(schema, definitions)
        if "properties" in definitions[name]
    ]
    return "\n".join([*sections, _VARIANTS + _variant_rows()])


def _in_reading_order(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Names of the models, each where the text first refers to it."""
    order: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in order:
                order.append(name)
                visit(definitions[name])
            for entry in node.values():
                visit(entry)
        elif isinstance(node, list):
            for entry in node:
                visit(entry)

    visit(schema["properties"])
    return order


def _section(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    lines = [f"## {name}", "", schema.get("description", "").strip(), ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field, entry in schema["properties"].items():
        default = "required" if field in required else _default(entry)
        meaning = " ".join(str(entry.get("description", "")).split())
        lines.append(f"| `{field}` | {_type(entry)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(entry: dict[str, Any]) -> str:
    if "default" not in entry:
        return "empty"
    return "its defaults" if isinstance(entry["default"], dict) else _code(entry["default"])


def _type(entry: dict[str, Any]) -> str:
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if name not in ("Variant",) else "[variant](#named-variants)"
    if "const" in entry:
        return _code(entry["const"])
    if "enum" in entry:
        return ", ".join(_code(value) for value in entry["enum"])
    for key in ("anyOf", "oneOf"):
        if key in entry:
            return " or ".join(_type(branch) for branch in entry[key])
    if entry.get("type") == "array":
        return f"list of ({_type(entry.get('items', {}))}){_bounds(entry)}"
    if entry.get("type") == "object" and isinstance(entry.get("additionalProperties"), dict):
        return f"map to {_type(entry['additionalProperties'])}{_bounds(entry)}"
    return str(entry.get("type", "any")) + _bounds(entry)


_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "at least {}",
    "maxProperties": "at most {}",
}


def _bounds(entry: dict[str, Any]) -> str:
    found = [text.format(entry[key]) for key, text in _BOUNDS.items() if key in entry]
    return f" ({', '.join(found)})" if found else ""


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value is not None else "none"


def _variant_rows() -> str:
    rows = []
    for variant in Variant:
        for pipeline in Pipeline:
            terms, context = expand_variant(variant, pipeline)
            names = " + ".join(f"`{term.type}`" for term in terms)
            rows.append(f"| `{variant}` | `{pipeline}` | {names} | `{context.type}` |")
    return "\n".join(rows) + "\n"

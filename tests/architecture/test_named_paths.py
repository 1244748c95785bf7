"""Files, folders and tests that documents name in backticks exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The changelog tells of earlier trees.
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = "tide_core|tide|workers|service|tests|tools|benchmarks|helm|deploy|docs|examples"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./{{}},*-]*)(?:::([\w:]+))?")
NAMES_OF_THE_READER = re.compile(r"FAMILY|NAME|RESOURCE|TERM")
"""A path with one of these words is a pattern to fill in, as in `tests/tide_core/models/test_FAMILY.py`."""


def spell_out(path: str) -> list[str]:
    """The paths that one with braces stands for."""
    braces = re.search(r"\{([^}]*)\}", path)
    if braces is None:
        return [path]
    return [
        whole
        for choice in braces.group(1).split(",")
        for whole in spell_out(path[: braces.start()] + choice + path[braces.end() :])
    ]


@functools.cache
def functions_of(module: Path) -> frozenset[str]:
    """Names of a module's functions, those of a class as `Class::function`, and of its classes."""
    tree = ast.parse(module.read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inner = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {node.name} | {f"{node.name}::{part.name}" for part in inner}
    return frozenset(names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    for named, test in PATH.findall(document.read_text()):
        if NAMES_OF_THE_READER.search(named):
            continue
        for path in spell_out(named):
            assert list(ROOT.glob(path)), f"{document.name} names {path}, which does not exist"
        if test:
            assert test in functions_of(ROOT / named), f"{document.name} names {named}::{test}"


def test_a_path_with_braces_stands_for_several() -> None:
    assert spell_out("a/{b,c}/d.{e,f}") == ["a/b/d.e", "a/b/d.f", "a/c/d.e", "a/c/d.f"]

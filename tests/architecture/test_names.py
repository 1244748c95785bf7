"""Names: a function says what it does, a class has its name for itself, a test touches no private name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tide", "tide_core", "service", "workers")
PROGRAMS = (*PACKAGES, "tools", "benchmarks")

PARTICIPLES = frozenset(
    [
        "aloft",
        "asked",
        "begun",
        "bound",
        "built",
        "chosen",
        "done",
        "drawn",
        "driven",
        "forgotten",
        "found",
        "frozen",
        "given",
        "gone",
        "held",
        "hidden",
        "kept",
        "known",
        "laid",
        "left",
        "lent",
        "lost",
        "made",
        "met",
        "paid",
        "sent",
        "shown",
        "sold",
        "spent",
        "spoken",
        "stolen",
        "taken",
        "thrown",
        "told",
        "unknown",
        "woken",
        "won",
        "worn",
        "written",
    ]
)
VERBS_IN_ED = frozenset(
    [
        "bleed",
        "breed",
        "embed",
        "exceed",
        "feed",
        "need",
        "proceed",
        "seed",
        "shed",
        "speed",
        "succeed",
        "weed",
    ]
)


def read_trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Path, relative to the repository, and syntax tree of every module in some folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def is_attribute(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is read like a variable: a property, or its setter."""
    return any(
        "property" in ast.unparse(each) or "setter" in ast.unparse(each) for each in function.decorator_list
    )


def is_participle(name: str) -> bool:
    word = name.strip("_")
    return word in PARTICIPLES or bool(re.fullmatch(r"[a-z]+ed", word) and word not in VERBS_IN_ED)


def test_what_a_participle_is() -> None:
    assert all(map(is_participle, ("sent", "fetched", "_asked", "aloft", "hidden")))
    assert not any(map(is_participle, ("send", "fetch", "feed", "_open", "is_held", "read_rows", "embed")))


def test_functions_are_verbs() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in read_trees(*PROGRAMS)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and is_participle(node.name)
        and not is_attribute(node)
    ]
    assert not found, "\n".join(["say what these functions do:", *found])


def test_a_class_has_its_name_for_itself() -> None:
    places = defaultdict(list)
    for path, tree in read_trees(*PACKAGES):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    doubles = {name: where for name, where in places.items() if len(where) > 1}
    assert not doubles


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of the packages' private names that a test imports or patches."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PROGRAMS:
            yield from ((node.lineno, each.name) for each in node.names if each.name.startswith("_"))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".setattr", ".delattr")):
            for argument in map(ast.unparse, node.args[:2]):
                if re.search(r"(^|['.])_[a-z]", argument) and "ray._private" not in argument:
                    yield node.lineno, argument


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("from workers.student.driver import _fit, Run", 1),
        ("monkeypatch.setattr(module, '_fit', other)", 1),
        ("monkeypatch.setattr('workers.student.driver._fit', other)", 1),
        ("monkeypatch.setattr(engine._queue, 'is_full', other)", 1),
        ("monkeypatch.setattr(module, 'fit', other)\nfrom torch import _dynamo", 0),
    ],
)
def test_what_a_private_name_is(code: str, count: int) -> None:
    assert len(list(private_names(ast.parse(code)))) == count


def test_tests_neither_import_nor_patch_private_names() -> None:
    found = [
        f"{path}:{line} {name}" for path, tree in read_trees("tests") for line, name in private_names(tree)
    ]
    assert not found, "\n".join(["give the code a seam instead of:", *found])


def test_tests_mirror_the_packages() -> None:
    for package in PROGRAMS:
        for folder in (ROOT / "tests" / package).rglob("*"):
            if folder.is_dir() and folder.name != "__pycache__":
                mirrored = ROOT / folder.relative_to(ROOT / "tests")
                assert mirrored.is_dir(), f"{folder.relative_to(ROOT)} tests a folder that is not there"


def test_what_tests_share_lies_in_their_support() -> None:
    loose = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if not path.name.startswith("test_") and path.name not in ("conftest.py", "__init__.py")
    }
    assert not {path for path in loose if not path.startswith("tests/support/")}

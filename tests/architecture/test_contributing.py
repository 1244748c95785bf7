"""CONTRIBUTING.md is true: each addition has its list of files, its table and the test that holds it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
ADDITIONS = {
    "A model family": ("tide_core/contracts/families.py", "FAMILIES"),
    "An objective term": ("tide_core/contracts/objective.py", "ObjectiveTerm"),
    "An evaluator": ("tide_core/evaluation/registry.py", "EVALUATORS"),
    "A figure of a job": ("tide_core/contracts/figures.py", "FIGURES"),
    "A metric of a process": ("service/observability/metrics.py", "REGISTRY"),
    "A REST resource": ("service/app.py", "create_app"),
    "A setting": ("service/settings.py", "Settings"),
    "A reporter (a tracker)": ("workers/reporting/trackers.py", "TRACKERS"),
    "A Serve application": ("tide_core/contracts/serving.py", "APPLICATION_KINDS"),
}
"""Heading -> the module that every addition of this kind touches, and the name in it."""
RESOURCES = ("teachers", "datasets", "models", "jobs")
RESOURCE_FILES = ("endpoints.py", "repository.py", "service.py", "tables.py")


def section(heading: str) -> str:
    """The text below a heading."""
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def names_in(module: str) -> set[str]:
    """What a module defines at its top level."""
    names: set[str] = set()
    for node in ast.parse((ROOT / module).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("heading", ADDITIONS)
def test_an_addition_has_its_list_its_table_and_its_test(heading: str) -> None:
    module, name = ADDITIONS[heading]
    text = section(heading)
    entries = re.findall(r"^\d+\. (.+)$", text, flags=re.MULTILINE)
    assert len(entries) >= 3
    assert f"`{module}`" in text
    assert name in names_in(module)
    held = text.split("Held by")
    assert len(held) == 2, "each addition says which test holds it"
    assert re.search(r"`tests/[\w/]+\.py", held[1])


@pytest.mark.parametrize("heading", ["An objective term", "An evaluator", "A model family"])
def test_the_table_and_the_page_name_the_same_files(heading: str) -> None:
    """The module's docstring holds the list too, for people who begin in the code."""
    docstring = ast.get_docstring(ast.parse((ROOT / ADDITIONS[heading][0]).read_text())) or ""
    named = re.findall(r"`?((?:tide_core|docs|tools)/[\w/.-]+\w)", docstring)
    assert named
    for path in named:
        assert path in section(heading), f"{ADDITIONS[heading][0]} names {path}"


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_resource_has_the_same_files(resource: str) -> None:
    assert {path.name for path in (ROOT / "service" / resource).glob("*.py")} >= set(RESOURCE_FILES)


def test_every_folder_with_rows_and_endpoints_is_a_resource() -> None:
    folders = {path.parent for path in (ROOT / "service").glob("*/tables.py")}
    with_endpoints = {folder.name for folder in folders if (folder / "endpoints.py").exists()}
    assert with_endpoints == set(RESOURCES)


def test_every_package_has_its_rule() -> None:
    rules = section("One rule for each package")
    for package in ("tide_core", "tide", "workers", "service", "tools", "benchmarks", "tests"):
        assert f"`{package}/`" in rules


def test_the_targets_and_modules_of_its_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in ("CONTRIBUTING.md", "README.md"):
        text = (ROOT / document).read_text()
        named = re.findall(r"`make ([a-z-]+)`", text) + re.findall(
            r"^make ([a-z-]+)", text, flags=re.MULTILINE
        )
        assert set(named) <= targets
        for module in re.findall(r"python -m ([\w.]+\w)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module

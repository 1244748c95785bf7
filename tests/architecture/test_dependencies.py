"""What each part imports is declared for it in pyproject.toml, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tide.cli.plugins import SIDES

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = frozenset({"tide", "tide_core", "service", "workers"})
MODULES = {
    "pyyaml": "yaml",
    "prometheus-client": "prometheus_client",
    "pydantic-settings": "pydantic_settings",
    "sse-starlette": "sse_starlette",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
"""Distributions whose module has another name."""
BROUGHT_ALONG = {"starlette": "fastapi"}
"""Modules that are a part of another package's interface."""
LOADED_BY_NAME = {
    "aiosqlite": "SQLAlchemy, by the database's URL",
    "asyncpg": "SQLAlchemy, by the database's URL",
    "s3fs": "fsspec, by the storage's URL",
}
GROUPS = {
    "tide": ((), ("tide", "tide_core/contracts")),
    "service": (
        ("service",),
        ("service", "tide_core/checkpoints", "tide_core/planning", "tide_core/queueing"),
    ),
    "workers": (("workers", "nixl", "tracing"), ("workers", "tide_core")),
}
"""Part -> the extras that it may use beside the base, and its folders."""


def names(requirements: list[str]) -> set[str]:
    """Modules of some requirements."""
    found = {re.split(r"[\[<>=!~ ]", each, maxsplit=1)[0] for each in requirements}
    return {MODULES.get(name, name) for name in found if name != PROJECT["name"]}


def imports(*folders: str) -> dict[str, str]:
    """Third-party modules that some folders import, each with a file that does."""
    found = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in (module.split(".")[0] for module in modules):
                if module not in sys.stdlib_module_names and module not in OURS:
                    found[BROUGHT_ALONG.get(module, module)] = str(path.relative_to(ROOT))
    return found


@pytest.mark.parametrize("part", GROUPS)
def test_what_is_imported_is_declared(part: str) -> None:
    extras, folders = GROUPS[part]
    declared = names(PROJECT["dependencies"]).union(*(names(EXTRAS[extra]) for extra in extras))
    used = imports(*folders)
    assert used.keys() <= declared, {module: used[module] for module in used.keys() - declared}


def test_what_is_declared_is_imported() -> None:
    product = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in EXTRAS if extra != "dev")]
    declared = set().union(*map(names, product))
    assert declared - imports(*OURS).keys() == LOADED_BY_NAME.keys()


def test_the_marks_of_a_side_come_with_its_extra_alone() -> None:
    for side, marks in SIDES.items():
        assert set(marks) <= names(EXTRAS[side]) - names(PROJECT["dependencies"])


@pytest.mark.parametrize(("image", "extra"), [("control-plane", "service"), ("workers-cuda", "workers")])
def test_images_hold_what_is_declared(image: str, extra: str) -> None:
    lock = (ROOT / "deploy" / "docker" / f"{image}.lock").read_text()
    locked = {
        name.lower().replace("_", "-") for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)
    }
    for requirement in PROJECT["dependencies"] + EXTRAS[extra]:
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
        assert name.lower().replace("_", "-") in locked, name

"""Which folders import which: `python -m tools.import_graph PACKAGE...` prints the graph of each package.

In: the sources, read without importing them. Out: a line for each folder or top module with what it imports,
and how often. `tests/architecture/test_import_contracts.py` looks for circles in the same graph.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class FolderImport:
    """One import between two folders, or top modules, of a package.

    Attributes:
        source, target: the folders, such as ``service.jobs``.
        importer, imported: the modules; `imported` may name something inside a module.
    """

    source: str
    target: str
    importer: str
    imported: str


def read_imports(package: str) -> Iterator[FolderImport]:
    """Every import inside a package that crosses from one folder to another, also those inside functions."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        importer = ".".join(part for part in parts if part != "__init__")
        source = _folder_of(importer)
        for imported in _imported_names(path):
            target = _folder_of(imported)
            if imported.startswith(f"{package}.") and target != source and importer != package:
                yield FolderImport(source, target, importer, imported)


def _folder_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def describe(package: str) -> str:
    """The graph of a package's folders, one line for each folder that imports another."""
    targets: dict[str, Counter[str]] = {}
    for found in read_imports(package):
        targets.setdefault(found.source, Counter())[found.target] += 1
    lines = (f"{_leaf(source)} -> {_count(targets[source])}" for source in sorted(targets))
    return "\n".join(lines)


def _count(targets: Counter[str]) -> str:
    return ", ".join(f"{_leaf(target)} {count}" for target, count in sorted(targets.items()))


def _leaf(folder: str) -> str:
    return folder.rpartition(".")[2]


if __name__ == "__main__":
    for name in sys.argv[1:] or ("service", "workers"):
        print(f"{name}\n{describe(name)}\n")

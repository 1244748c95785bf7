"""Real text and code that every machine with Python has: the documented functions of the standard library.

The text is the Python Software Foundation's (PSF License 2.0); nothing of it is shipped, it is read from the
interpreter's own library. Python versions differ in it, so each use records its content hash.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LICENCE = "PSF-2.0"

# Tests, demos and bundled third parties are of the same language but not of the library's own prose.
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "_vendor"}
)
_LONGEST_SUMMARY = 110
_LONGEST_SIGNATURE = 90


@dataclass(frozen=True)
class DocumentedFunction:
    """A function or method of the standard library with the first sentence of its docstring.

    Attributes:
        qualified_name: dotted path from the module down, unique in the corpus.
        signature: the `def` line, without decorators, annotations kept, on one line.
        summary: the docstring's first sentence, white space normalised.
    """

    qualified_name: str
    signature: str
    summary: str


def documented_functions(root: Path | None = None) -> list[DocumentedFunction]:
    """All documented functions of a library tree, in the order of their qualified names.

    Args:
        root: folder of Python sources; the running interpreter's standard library when not given.

    Returns:
        One entry for each function whose signature and summary are short enough to be an exercise.
    """
    folder = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    found: dict[str, DocumentedFunction] = {}
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts):
            for function in _functions_of(path, ".".join(relative.with_suffix("").parts)):
                found.setdefault(function.qualified_name, function)
    return [found[name] for name in sorted(found)]


def _functions_of(path: Path, module: str) -> Iterator[DocumentedFunction]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        # The library holds a few files that are wrong on purpose (fixtures of its own tools).
        return
    yield from _walk(tree, module)


def _walk(node: ast.AST, prefix: str) -> Iterator[DocumentedFunction]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            function = _describe(child, prefix)
            if function is not None:
                yield function


def _describe(node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> DocumentedFunction | None:
    summary = first_sentence(ast.get_docstring(node) or "")
    signature = f"def {node.name}({ast.unparse(node.args)}):"
    if not 12 <= len(summary) <= _LONGEST_SUMMARY or len(signature) > _LONGEST_SIGNATURE:
        return None
    return DocumentedFunction(f"{prefix}.{node.name}", signature, summary)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring on one line, empty when there is none."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    line = " ".join(paragraph.split())
    match = re.match(r".*?[.!?](?=\s|$)", line)
    return match.group(0) if match else line

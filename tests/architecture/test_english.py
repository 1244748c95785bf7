"""Plain English: words that make a sentence hard for people who read English as a second language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "tide",
    "tide_core",
    "service",
    "workers",
    "tools",
    "benchmarks",
    "examples",
    "docs",
    "helm",
    "deploy",
    "tests",
)
ENDINGS = {".py", ".md", ".html", ".js", ".css", ".jinja", ".yaml", ".tpl", ".txt", ".ipynb"}
RIDDLES = re.compile(
    r"(?<!['\"/-])(\b|_)(nobody|whoever|somebody|without a word)(\b|_)(?!['\"-])", re.IGNORECASE
)
"""Names in quotes and paths are no prose."""


def texts() -> Iterator[Path]:
    """Everything that people read: sources, templates, documents, the chart."""
    yield from ROOT.glob("*.md")
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in ENDINGS and path.is_file() and path != Path(__file__).resolve():
                yield path


def test_no_riddles() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if RIDDLES.search(line)
    ]
    assert not found, "\n".join(["name the subject, in plain words:", *found])

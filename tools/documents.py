"""The documents that are generated from the code, all in one table.

In: nothing. Out: path of each document -> the function that makes its text. `python -m tools` writes them,
and tests/tools/test_documents.py checks that each committed one is current.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tools import (
    dashboards,
    helm_values_page,
    job_spec_page,
    metrics_page,
    model_families_page,
    openapi,
    sizing_page,
)

ROOT = Path(__file__).parents[1]
_PAGES = (helm_values_page, job_spec_page, metrics_page, model_families_page, openapi, sizing_page)
DOCUMENTS: dict[Path, Callable[[], str]] = {page.TARGET: page.document for page in _PAGES} | {
    dashboards.TARGET / f"{name}.json": partial(dashboards.document, name) for name in dashboards.PAGES
}


def write_documents() -> list[Path]:
    """Write every document that is not current; their paths."""
    return [path for path, make in DOCUMENTS.items() if _write(path, make())]


def _write(path: Path, text: str) -> bool:
    """Write a text, unless the file holds it already; whether it was written."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True

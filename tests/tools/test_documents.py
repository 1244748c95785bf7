"""The documents that are generated from the code are the committed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import openapi
from tools.documents import DOCUMENTS, ROOT, write_documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_generated_document_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == DOCUMENTS[path](), "run: python -m tools"


def test_every_page_that_says_it_is_generated_is_in_the_table() -> None:
    generated = {path for path in (ROOT / "docs").rglob("*.md") if "`python -m tools`" in path.read_text()}
    pages = {path.resolve() for path in DOCUMENTS if path.suffix == ".md"}
    assert {path.resolve() for path in generated} <= pages


def test_documents_that_are_current_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "folder" / "page.md"
    monkeypatch.setattr("tools.documents.DOCUMENTS", {made: lambda: "text\n"})
    assert write_documents() == [made]
    assert made.read_text() == "text\n"
    assert write_documents() == []


def test_every_failure_is_described_by_the_envelope() -> None:
    described = json.loads(openapi.document())
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    content = response["content"]["application/json"]["schema"]
                    assert content == envelope, f"{method} {path} {status}"

"""The demo's rows: deterministic, split by text, hashed."""

import json
from pathlib import Path

import pytest

from workers.demo.conversations import (
    RowCounts,
    content_hash,
    documentation_rows,
    draw_rows,
    tokenizer_texts,
    write_corpus,
)
from workers.demo.corpus import DocumentedFunction, documented_functions, first_sentence
from workers.demo.splits import SPLITS, split_of

SOURCE = '''
def area(width: int, height: int = 1) -> int:
    """Give the area of a rectangle. More follows.

    And more.
    """

class Box:
    async def open(self, *, key):
        """Open the box with the right key."""

def silent():
    pass
'''


def functions(count: int) -> list[DocumentedFunction]:
    return [
        DocumentedFunction(f"m.f{i}", f"def f{i}(x):", f"Explain the number {i} well.") for i in range(count)
    ]


def test_documented_functions_are_read_from_source(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "hidden.py").write_text(SOURCE)
    assert documented_functions(tmp_path) == [
        DocumentedFunction("shapes.Box.open", "def open(self, *, key):", "Open the box with the right key."),
        DocumentedFunction(
            "shapes.area", "def area(width: int, height: int=1):", "Give the area of a rectangle."
        ),
    ]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One.  Two.", "One."),
        ("Over\n  two lines.\n\nLater.", "Over two lines."),
        ("See os.path for more", "See os.path for more"),
        ("", ""),
    ],
)
def test_first_sentence(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


def test_a_repeated_docstring_never_crosses_splits() -> None:
    parent = DocumentedFunction("a.A.close", "def close(self):", "Close the thing at hand.")
    child = DocumentedFunction("b.B.close", "def close(self):", "Close the thing at hand.")
    found = [bool(documentation_rows([parent], s)) == bool(documentation_rows([child], s)) for s in SPLITS]
    assert all(found)


def test_rows_are_the_same_for_the_same_arguments() -> None:
    corpus = functions(200)
    counts = RowCounts(documentation=40, tasks=40)
    first = draw_rows(corpus, "train", counts, seed=1)
    assert content_hash(first) == content_hash(draw_rows(corpus, "train", counts, seed=1))
    assert content_hash(first) != content_hash(draw_rows(corpus, "train", counts, seed=2))
    assert content_hash(first) != content_hash(first[::-1])
    assert sum(row["exact"] for row in first) == 40


def test_questions_of_a_set_are_distinct_tasks() -> None:
    rows = draw_rows([], "test", RowCounts(documentation=0, tasks=300), seed=0)
    questions = [row["messages"][0]["content"] for row in rows]
    assert len(set(questions)) == 300
    assert {split_of(question) for question in questions} == {"test"}


def test_tokenizers_never_see_held_out_documents() -> None:
    corpus = functions(100)
    texts = set(tokenizer_texts(corpus))
    held_out = [function.summary for function in corpus if split_of(function.summary) != "train"]
    assert held_out
    assert texts.isdisjoint(held_out)


def test_write_corpus_records_what_it_wrote(tmp_path: Path) -> None:
    counts = {split: RowCounts(documentation=20, tasks=10) for split in SPLITS}
    manifest = write_corpus(tmp_path, counts, seed=0)
    assert manifest == json.loads((tmp_path / "corpus.json").read_text())
    assert manifest["documentation_licence"] == "PSF-2.0"
    for split in SPLITS:
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        assert content_hash(rows) == manifest["splits"][split]["content_hash"]
        assert len(rows) == manifest["splits"][split]["rows"] == 30
        only_tasks = (tmp_path / f"{split}_tasks.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in only_tasks] == [row for row in rows if row["exact"]]

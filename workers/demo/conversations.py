"""The demo's rows: chat conversations from real documentation and from generated tasks."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypedDict

from workers.demo.corpus import LICENCE, DocumentedFunction, documented_functions
from workers.demo.splits import Split, split_of
from workers.demo.tasks import GeneratedTask, generate_tasks


class Turn(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class CorpusRow(TypedDict):
    """One line of a data file: `kind` names where it comes from, `exact` whether it has one right answer."""

    kind: str
    exact: bool
    messages: list[Turn]


@dataclass(frozen=True)
class RowCounts:
    """How many rows of each sort a split holds."""

    documentation: int
    tasks: int


def _row(kind: str, question: str, answer: str, *, exact: bool) -> CorpusRow:
    messages: list[Turn] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return {"kind": kind, "exact": exact, "messages": messages}


def documentation_rows(functions: Iterable[DocumentedFunction], split: Split) -> list[CorpusRow]:
    """Two exercises for each documented function: signature to summary and summary to signature.

    The split is decided by the summary, not the name: an overriding method repeats its parent's docstring,
    and must not bring a held-out text into the training set.
    """
    rows = []
    for function in functions:
        if split_of(function.summary) != split:
            continue
        name = function.qualified_name.rsplit(".", 1)[-1]
        rows.append(_row("summary", f"Document: {function.signature}", function.summary, exact=False))
        rows.append(_row("signature", f"Write {name}: {function.summary}", function.signature, exact=False))
    return rows


def task_rows(split: Split, seed: int) -> Iterator[CorpusRow]:
    """An endless stream of generated tasks of one split as conversations."""
    for task in generate_tasks(split, seed):
        yield task_row(task)


def task_row(task: GeneratedTask) -> CorpusRow:
    """A generated task as a conversation."""
    return _row(task.kind, task.question, task.answer, exact=True)


def draw_rows(
    functions: Sequence[DocumentedFunction], split: Split, counts: RowCounts, seed: int
) -> list[CorpusRow]:
    """A fixed number of rows of a split, shuffled; the same for the same arguments.

    Args:
        functions: the corpus.
        split: where the rows come from.
        counts: how many of each sort; fewer documentation rows are returned when the corpus has fewer.
        seed: of the draw.

    Returns:
        Documentation and tasks mixed.
    """
    draw = random.Random(f"rows/{split}/{seed}")
    documentation = documentation_rows(functions, split)
    draw.shuffle(documentation)
    rows = documentation[: counts.documentation] + list(
        islice(_distinct(task_rows(split, seed)), counts.tasks)
    )
    draw.shuffle(rows)
    return rows


def _distinct(rows: Iterable[CorpusRow]) -> Iterator[CorpusRow]:
    seen: set[str] = set()
    for row in rows:
        question = row["messages"][0]["content"]
        if question not in seen:
            seen.add(question)
            yield row


def content_hash(rows: Iterable[CorpusRow]) -> str:
    """Hash of the rows in their order (BLAKE2b, 16 bytes, hexadecimal)."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def write_corpus(folder: Path, counts: dict[Split, RowCounts], seed: int) -> dict[str, object]:
    """Write the rows of every split, and `corpus.json` with counts, content hashes and the licence.

    `<split>.jsonl` holds all rows, `<split>_tasks.jsonl` those with one right answer.

    Args:
        folder: made when it does not exist.
        counts: rows of each split.
        seed: of the draw.

    Returns:
        What `corpus.json` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    functions = documented_functions()
    splits: dict[str, object] = {}
    for split, wanted in counts.items():
        rows = draw_rows(functions, split, wanted, seed)
        _write_rows(folder / f"{split}.jsonl", rows)
        _write_rows(folder / f"{split}_tasks.jsonl", [row for row in rows if row["exact"]])
        splits[split] = {
            "rows": len(rows),
            "exact": sum(row["exact"] for row in rows),
            "content_hash": content_hash(rows),
        }
    manifest: dict[str, object] = {"seed": seed, "documentation_licence": LICENCE, "splits": splits}
    (folder / "corpus.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _write_rows(path: Path, rows: Iterable[CorpusRow]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


_TOKENIZER_TASKS = 8000


def tokenizer_texts(functions: Sequence[DocumentedFunction]) -> list[str]:
    """What both tokenisers are trained on: contents of training rows, and the words of the templates.

    The words are repeated so that each becomes one token, as it is in the tokenisers that these stand for.
    """
    rows = documentation_rows(functions, "train") + list(islice(task_rows("train", 0), _TOKENIZER_TASKS))
    contents = [message["content"] for row in rows for message in row["messages"]]
    return contents + ["user\n", "assistant\n", "HUMAN", "ASSISTANT", "SYSTEM"] * 2000

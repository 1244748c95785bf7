"""Each long-running loop has a page, and its module says in short what the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOOPS = {
    "reconciler": "service/orchestrator/reconciler.py",
    "pool-keeper": "service/orchestrator/pool_keeper.py",
    "engine": "workers/teachers/engine.py",
    "prefetcher": "tide_core/scoring/prefetcher.py",
    "reporter": "workers/reporting/http_reporter.py",
}
HEADINGS = ["What it does", "What it locks", "Invariant", "Failures"]


def test_every_page_belongs_to_a_loop() -> None:
    assert {page.stem for page in (ROOT / "docs/loops").glob("*.md")} == {*LOOPS, "README"}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_page_says_what_a_loop_does_locks_keeps_and_answers(loop: str) -> None:
    text = (ROOT / f"docs/loops/{loop}.md").read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS
    assert f"](../../{LOOPS[loop]})" in text
    rows = re.findall(r"^\| (.+) \|$", text.split("## Failures")[1], flags=re.MULTILINE)[2:]
    assert rows
    for row in rows:
        failure, answer, tests = row.split(" | ")
        assert failure
        assert answer
        assert re.search(r"`tests/\S+\.py::\w+", tests), f"no test shows the answer to: {failure}"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loops_module_says_it_in_short(loop: str) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / LOOPS[loop]).read_text())) or ""
    for part in ("In: ", "Out: ", "Locks: ", "Invariant: ", "Failures: "):
        assert part in docstring, f"{LOOPS[loop]} does not say '{part}'"

"""The Python in the README is a job that the contracts accept, posted by the client that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import tide
from tide_core.contracts.job import JobSpec

README = Path(__file__).resolve().parents[2] / "README.md"


def read_snippet() -> ast.Module:
    """The README's one block of Python."""
    (text,) = re.findall(r"```python\n(.+?)```", README.read_text(), flags=re.DOTALL)
    return ast.parse(text)


def test_the_spec_is_one() -> None:
    (spec,) = (
        node for node in ast.walk(read_snippet()) if isinstance(node, ast.Dict) and len(node.keys) == 4
    )
    value: Any = ast.literal_eval(spec)
    assert JobSpec.model_validate(value)


def test_what_it_calls_exists() -> None:
    called = {
        node.func.attr
        for node in ast.walk(read_snippet())
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert called == {"Client", "create", "wait"}
    with tide.Client("http://127.0.0.1:1") as client:
        assert callable(client.jobs.create)
    assert callable(tide.JobHandle.wait)
    assert "status" in tide.Job.model_fields

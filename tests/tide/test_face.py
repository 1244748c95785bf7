"""What `import tide` gives, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tide

FACE = Path(tide.__file__ or "")


def test_exported_names() -> None:
    """The public interface: a name that goes, or a new one, is a decision."""
    assert tide.__all__ == [
        "AccessDeniedError",
        "ApiError",
        "AsyncClient",
        "AsyncJobHandle",
        "AuthenticationError",
        "Checkpoint",
        "Client",
        "Dataset",
        "Event",
        "Health",
        "InvalidInputError",
        "InvalidRequestError",
        "Job",
        "JobHandle",
        "JobProgress",
        "JobSpec",
        "JobState",
        "MetricSeries",
        "MetricSeriesList",
        "MissingResourceError",
        "Model",
        "Phase",
        "Plan",
        "PlanRequest",
        "Readiness",
        "RequestConflictError",
        "ServerFailedError",
        "Teacher",
        "TideError",
        "TooManyRequestsError",
        "UnexpectedAnswerError",
        "UnreachableError",
        "WaitTimeoutError",
    ]
    assert dir(tide) == sorted(tide.__all__)


@pytest.mark.parametrize("name", tide.__all__)
def test_a_name_is_what_type_checkers_see(name: str) -> None:
    """The imports for type checkers and those at run time lead to the same place."""
    imported = {
        alias.name: node.module
        for node in ast.walk(ast.parse(FACE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tide")
        for alias in node.names
    }
    assert getattr(tide, name).__module__ == imported[name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(tide, "Clint")


def test_the_face_only_names_things() -> None:
    tree = ast.parse(FACE.read_text())
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert functions == ["__getattr__", "__dir__"]


def _run(code: str) -> tuple[str, float]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip(), time.perf_counter() - began


def test_importing_costs_nothing() -> None:
    modules = "{'torch', 'ray', 'numpy', 'pydantic', 'httpx', 'fastapi', 'sqlalchemy', 'typer'}"
    loaded, _ = _run(f"import tide, sys; print(sorted({modules} & set(sys.modules)))")
    assert loaded == "[]"
    # The best of a few: other processes run beside the tests.
    measured = "import time; t = time.perf_counter(); import tide; print(time.perf_counter() - t)"
    assert min(float(_run(measured)[0]) for _ in range(3)) < 0.2


def test_a_client_needs_neither_torch_nor_a_server() -> None:
    modules = "{'torch', 'ray', 'fastapi', 'sqlalchemy', 'typer', 'service', 'workers', 'transformers'}"
    loaded, _ = _run(f"import tide, sys; tide.Client(); print(sorted({modules} & set(sys.modules)))")
    assert loaded == "[]"

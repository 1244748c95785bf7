"""The benchmark that holds plans against runs, at a size that ends in seconds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "plan_check.py"


@pytest.fixture(scope="module")
def plan_check() -> ModuleType:
    found = importlib.util.spec_from_file_location("plan_check", FILE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_small_run_is_planned_within_a_factor(
    plan_check: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this size the process itself is most of the memory, and dispatch much of the time: wide bounds."""
    monkeypatch.setenv("PYTHONPATH", str(FILE.parents[1]))
    words = ["--steps", "4", "--length", "64", "--batch", "4", "--vocab", "4096"]
    plan_check.main([*words, "--scenario", "tidal_comp_demo"])
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["scenario"] == "tidal_comp_demo"
    planned, measured = found["planned"], found["measured"]
    assert planned["peak_bytes"] == pytest.approx(measured["peak_bytes"], rel=0.4)
    for name in ("trainer", "teacher"):
        assert 1 / 3 < planned[name] / measured[name] < 3, (name, found)


def test_the_models_have_the_sizes_that_their_names_say(plan_check: ModuleType) -> None:
    from tide_core.contracts.objective import Pipeline
    from tide_core.planning.shapes import model_shape

    configs = {
        "student": plan_check.student_config(32768),
        "mixture": plan_check.teacher_config(Pipeline.CROSS_TOKENIZER, 32768),
        "dense": plan_check.teacher_config(Pipeline.SHARED_TOKENIZER, 32768),
    }
    millions = {name: model_shape(config, name).parameters / 1e6 for name, config in configs.items()}
    assert millions == pytest.approx({"student": 11, "mixture": 57, "dense": 42}, rel=0.05)

"""The example distils on its own: no Ray, no web server, no service, no workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BANNED = ("ray", "fastapi", "starlette", "sqlalchemy", "httpx", "service", "workers", "transformers")
SCRIPT = """
import json, runpy, sys
sys.argv = ["one_step.py", *sys.argv[1:]]
runpy.run_path("examples/one_step.py", run_name="__main__")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("wrong", [("--steps", "0"), ("--models", "nowhere")])
def test_a_wrong_argument_is_named(wrong: tuple[str, str]) -> None:
    command = [sys.executable, str(ROOT / "examples" / "one_step.py"), *wrong]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert f"error: {wrong[0]}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("teacher", "term"), [("moe", "reverse_calm"), ("dense", "tidal")])
def test_the_example_distils_without_ray_and_service(teacher: str, term: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--teacher", teacher, "--steps", "6"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, modules = done.stdout.strip().splitlines()
    assert not set(json.loads(modules)) & set(BANNED)
    steps = [dict(re.findall(r"(\w+) +(-?\d+\.\d+)", line)) for line in lines]
    assert len(steps) == 6
    assert set(steps[0]) == {"total", "cross_entropy", term}
    for losses in steps:
        parts = float(losses["cross_entropy"]) + float(losses[term])
        assert float(losses["total"]) == pytest.approx(parts, abs=2e-4)
    assert float(steps[-1]["cross_entropy"]) < float(steps[0]["cross_entropy"])

"""The figures that a machine is measured to have, and the file that `tide plan` reads them from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from tide_core.contracts.plan import Cluster
from workers import commands, device_figures
from workers.device_figures import measure_device


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = device_figures._KernelSizes(matrix=256, copied=2**20, tokens=256, hidden=64)
    monkeypatch.setattr(device_figures, "_CPU_SIZES", sizes)
    monkeypatch.setattr(device_figures, "_LINK_BYTES", 2**22)


def run(*words: str) -> Result:
    app = typer.Typer()
    app.command("measure")(commands.measure)
    return CliRunner().invoke(app, list(words))


def test_a_cpu_is_measured_and_the_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    kind = measure_device(torch.device("cpu"), threads=1)
    assert torch.get_num_threads() == before
    assert kind.name == "cpu, 1 threads"
    assert not kind.is_accelerator
    # Wide bounds: what any machine does that can run the tests.
    assert 1e8 < kind.float32_flops < 1e14
    assert 1e8 < kind.memory_bandwidth < 1e13
    assert kind.tile_bandwidth is not None
    assert 1e8 < kind.tile_bandwidth < 1e13
    assert 1e7 < kind.link_bandwidth < 1e12
    assert 1e-8 < kind.dispatch_seconds < 1e-3


def test_the_file_is_a_cluster(tmp_path: Path) -> None:
    target = tmp_path / "cluster.json"
    answer = run(str(target), "--device", "cpu", "--threads", "1", "--count", "2")
    assert answer.exit_code == 0, answer.output
    (group,) = Cluster.model_validate_json(target.read_text()).devices
    assert group.count == 2
    assert "tide plan" in answer.stderr


def test_without_a_file_it_is_printed() -> None:
    answer = run("--device", "cpu", "--threads", "1")
    assert len(json.loads(answer.stdout)["devices"]) == 1


def test_an_unknown_device_is_refused() -> None:
    answer = run("--device", "abacus")
    assert answer.exit_code == 1
    assert "abacus" in answer.stderr


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    kind = measure_device(torch.device("cuda"))
    assert kind.is_accelerator
    assert kind.bfloat16_flops > kind.float32_flops

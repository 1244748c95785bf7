"""`tide up` as a person runs it: start, refuse a second one, end without leftovers, go on after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.orchestrator import embedded_ray
from tide.instance import read_instance

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TIDE = [sys.executable, "-m", "tide.cli.main"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TIDE_")}


class Up:
    """A `tide up` in a folder."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*TIDE, "up", "--data-dir", str(folder), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )

    def await_ready(self, seconds: float = 60.0) -> str:
        """The address once everything answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.stdout.read()
            instance = read_instance(self.folder)
            if instance is not None and instance.pid == self.process.pid and _is_ready(instance.url):
                return instance.url
            time.sleep(0.1)
        raise AssertionError("not ready in time")

    def end(self, number: signal.Signals) -> str:
        """Send a signal and wait; returns what was printed."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=40)[0]


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TIDE, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, **options
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    record = embedded_ray.read_record(tmp_path / "data")
    if record is not None:
        embedded_ray.stop(record, tmp_path / "data")
    shutil.rmtree(embedded_ray.temp_dir(tmp_path / "data"), ignore_errors=True)


def test_starts_refuses_a_second_and_ends_without_orphans(folder: Path) -> None:
    up = Up(folder)
    url = up.await_ready()
    record = embedded_ray.read_record(folder)
    tree = psutil.Process(up.process.pid).children(recursive=True) + embedded_ray.find_members(record)
    assert len(tree) > 5

    second = run("up", "--data-dir", str(folder))
    assert second.returncode == 1
    assert f"already running at {url}" in second.stderr
    assert "Traceback" not in second.stderr

    doctor = run("doctor", "--data-dir", str(folder), "-o", "json")
    verdicts = {finding["name"]: finding for finding in json.loads(doctor.stdout)}
    assert verdicts["tide up"]["found"] == f"{url} is ready"
    assert verdicts["ray head"]["verdict"] == "ok"

    printed = up.end(signal.SIGINT)
    assert url in printed
    assert "Tide has ended." in printed
    assert up.process.returncode == 0
    _, left = psutil.wait_procs(tree, timeout=3.0)  # ended ones may wait for init to collect them
    assert left == []
    assert embedded_ray.find_members(record) == []
    assert read_instance(folder) is None
    assert (folder / "ray-token").stat().st_mode & 0o777 == 0o600


def test_a_killed_one_leaves_a_head_that_the_next_one_takes_over_and_down_ends(folder: Path) -> None:
    first = Up(folder)
    url = first.await_ready()
    record = embedded_ray.read_record(folder)
    first.process.kill()
    first.process.wait()
    assert embedded_ray.is_alive(record), "the jobs on it go on"
    findings = json.loads(run("doctor", "--data-dir", str(folder), "-o", "json").stdout)
    assert {finding["name"] for finding in findings if finding["verdict"] == "warning"} >= {
        "tide up",
        "ray head",
    }

    second = Up(folder)
    assert second.await_ready() == url, "workers report to the address that they were told"
    assert embedded_ray.read_record(folder) == record

    second.process.kill()
    second.process.wait()
    down = run("down", "--data-dir", str(folder))
    assert down.returncode == 0
    assert "left behind" in down.stdout
    assert embedded_ray.find_members(record) == []
    assert run("down", "--data-dir", str(folder)).stdout.startswith("Nothing runs")


def test_a_head_that_dies_is_started_again_at_its_address_and_down_ends_all(folder: Path) -> None:
    up = Up(folder)
    url = up.await_ready()
    record = embedded_ray.read_record(folder)
    for process in embedded_ray.find_members(record):
        with contextlib.suppress(psutil.NoSuchProcess):  # it went down with one that was killed before it
            process.kill()
    deadline = time.monotonic() + 60
    while (new := embedded_ray.read_record(folder)) in (None, record) or not _is_ready(url):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert new.dashboard_url == record.dashboard_url
    down = run("down", "--data-dir", str(folder))
    assert "Tide is down." in down.stdout
    assert up.process.wait(timeout=10) == 0
    assert embedded_ray.find_members(new) == []


def test_ctrl_c_while_ray_starts_leaves_nothing(folder: Path) -> None:
    up = Up(folder)
    deadline = time.monotonic() + 30
    while (record := embedded_ray.read_record(folder)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    up.end(signal.SIGTERM)
    assert embedded_ray.find_members(record) == []
    assert read_instance(folder) is None

"""`tide doctor`: what is installed, what is wrong, and what to do about it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
import typer

from service.commands.instance import is_held
from service.commands.setting_flags import read_settings
from service.orchestrator import embedded_ray
from service.settings import Settings
from tide.cli.options import Output
from tide.cli.output import print_json, print_table
from tide.client import Client
from tide.instance import read_instance
from tide_core.contracts.errors import TideError

_GIB = 1 << 30
_SMALLEST_MEMORY, _SMALLEST_DISK = 4 * _GIB, 5 * _GIB
_TESTED_RAY = "2.60"
_PACKAGES = {
    "tide-distill": True,
    "fastapi": True,
    "sqlalchemy": True,
    "ray": False,
    "torch": False,
    "datasets": False,
}
"""Packages to report, and whether the control plane itself needs them (the workers need the others)."""


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def run(folder: Path, output: Output) -> None:
    """Print all findings; exit status 1 when one of them is a problem."""
    findings = list(_examine(folder))
    if output is Output.JSON:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        rows = [
            [
                finding.name,
                finding.verdict,
                finding.found + (f" -> {finding.advice}" if finding.advice else ""),
            ]
            for finding in findings
        ]
        print_table(["CHECK", "VERDICT", "FOUND"], rows, when_empty="Nothing was checked.")
    if any(finding.verdict is Verdict.PROBLEM for finding in findings):
        raise typer.Exit(1)


def _examine(folder: Path) -> Iterator[Finding]:
    yield _python()
    for name, is_needed in _PACKAGES.items():
        yield _package(name, is_needed)
    try:
        settings = read_settings(None, {"data_dir": str(folder)})
    except TideError as error:
        yield Finding("settings", Verdict.PROBLEM, error.message, "correct the variable or the file")
        settings = Settings.model_construct()
    checks: tuple[Callable[[Path, Settings], Finding], ...] = (
        _worker_python,
        _running,
        _port,
        _ray_head,
        _memory,
        _shared_memory,
        _disk,
        _folder,
        _sqlite,
        _gpus,
    )
    for check in checks:
        yield check(folder, settings)


def _python() -> Finding:
    return Finding("python", Verdict.OK, ".".join(str(part) for part in sys.version_info[:3]))


def _package(name: str, is_needed: bool) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        extra = "service" if is_needed else "workers"
        verdict = Verdict.PROBLEM if is_needed else Verdict.WARNING
        return Finding(name, verdict, "not installed", f"pip install 'tide-distill[{extra}]'")
    if name == "ray" and not version.startswith(_TESTED_RAY):
        return Finding(name, Verdict.WARNING, version, f"tested with {_TESTED_RAY}")
    return Finding(name, Verdict.OK, version)


def _worker_python(_folder: Path, settings: Settings) -> Finding:
    name, python = "worker_python", settings.worker_python
    try:
        answer = subprocess.run(
            [python, "-c", "import ray; print(ray.__version__)"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, Verdict.PROBLEM, f"{python}: {error}", "set TIDE_WORKER_PYTHON")
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        advice = "install tide-distill[workers] there, or set TIDE_WORKER_PYTHON"
        return Finding(name, Verdict.PROBLEM, f"{python}: {''.join(last)}", advice)
    return Finding(name, Verdict.OK, f"{python} (Ray {answer.stdout.strip()})")


def _running(folder: Path, _settings: Settings) -> Finding:
    instance = read_instance(folder)
    if not is_held(folder):
        if instance is None:
            return Finding("tide up", Verdict.OK, f"not running in {folder.resolve()}")
        return Finding(
            "tide up", Verdict.WARNING, "was killed", "`tide up` goes on where it was, `tide down` cleans up"
        )
    if instance is None:
        return Finding("tide up", Verdict.OK, "is just starting")
    try:
        with Client(instance.url, retries=0, timeout=10.0) as client:
            readiness = client.ready()
    except TideError as error:
        return Finding("tide up", Verdict.PROBLEM, error.message, "`tide down`, then `tide up`")
    missing = [f"{check.name}: {check.message}" for check in readiness.checks if check.message]
    if missing:
        advice = f"see {folder.resolve() / 'control-plane.log'}"
        return Finding("tide up", Verdict.PROBLEM, f"{instance.url}: {'; '.join(missing)}", advice)
    return Finding("tide up", Verdict.OK, f"{instance.url} is ready")


def _port(folder: Path, settings: Settings) -> Finding:
    name = f"port {settings.port}"
    if is_held(folder) or settings.port == 0 or embedded_ray.is_port_free(settings.port):
        return Finding(name, Verdict.OK, "ours" if is_held(folder) else "free")
    return Finding(name, Verdict.WARNING, "taken by another program", "tide up --port 0, or TIDE_PORT")


def _ray_head(folder: Path, _settings: Settings) -> Finding:
    record = embedded_ray.read_record(folder)
    if record is None:
        return Finding("ray head", Verdict.OK, "none runs here")
    count = len(embedded_ray.find_members(record))
    if is_held(folder):
        verdict = Verdict.OK if count else Verdict.PROBLEM
        return Finding("ray head", verdict, f"{record.dashboard_url}, {count} processes")
    if not count:
        return Finding("ray head", Verdict.OK, "none runs here")
    return Finding(
        "ray head", Verdict.WARNING, f"{count} processes left by a killed `tide up`", "`tide down` ends them"
    )


def _memory(_folder: Path, _settings: Settings) -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free, {os.cpu_count()} cores"
    if memory.available >= _SMALLEST_MEMORY:
        return Finding("memory", Verdict.OK, found)
    return Finding("memory", Verdict.WARNING, found, "Ray and a small job take about 4 GiB")


def _shared_memory(_folder: Path, settings: Settings) -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", Verdict.OK, "no /dev/shm on this system")
    free = shutil.disk_usage("/dev/shm").free
    needed = settings.ray_object_store_bytes or embedded_ray.object_store_bytes()
    found = f"{free / _GIB:.1f} GiB free in /dev/shm, the object store takes {needed / _GIB:.1f}"
    if free >= needed:
        return Finding("shared memory", Verdict.OK, found)
    advice = "enlarge it (docker run --shm-size), or set TIDE_RAY_OBJECT_STORE_BYTES"
    return Finding("shared memory", Verdict.WARNING, found, advice)


def _disk(folder: Path, _settings: Settings) -> Finding:
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / _GIB:.1f} GiB free at {place}"
    if free >= _SMALLEST_DISK:
        return Finding("disk", Verdict.OK, found)
    return Finding("disk", Verdict.WARNING, found, "checkpoints need room: set TIDE_DATA_DIR or TIDE_STORAGE")


def _folder(folder: Path, _settings: Settings) -> Finding:
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if os.access(place, os.W_OK):
        return Finding("data folder", Verdict.OK, str(folder.resolve()))
    return Finding("data folder", Verdict.PROBLEM, f"{place} is not writable", "set TIDE_DATA_DIR")


def _sqlite(_folder: Path, _settings: Settings) -> Finding:
    return Finding("sqlite", Verdict.OK, sqlite3.sqlite_version)


def _gpus(_folder: Path, _settings: Settings) -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("gpus", Verdict.OK, "none found: teachers and students run on the CPU")
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return Finding("gpus", Verdict.WARNING, "nvidia-smi does not answer", "look at the driver")
    found = "; ".join(answer.stdout.strip().splitlines())
    return Finding(
        "gpus", Verdict.OK if answer.returncode == 0 else Verdict.WARNING, found or "nvidia-smi failed"
    )

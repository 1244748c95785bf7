"""The import contracts hold, cannot be loosened without a report, and notice a breach.

The layers and the pairs below are what decision 24 promises. Adding a folder, a forbidden module or a whole
contract is always allowed; taking something away, turning an order round or ignoring an import is not.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from tools.import_graph import read_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tide", "tide_core", "service", "workers")

LAYERS: dict[str, tuple[str, ...]] = {
    "service": (
        "commands",
        "app",
        "web | health",
        "migrations",
        "orchestrator",
        "jobs",
        "teachers | datasets | models",
        "events",
        "access",
        "api",
        "observability | db | settings",
        "clock | identifiers",
    ),
    "workers": (
        "commands",
        "main | conversion | demo | device_figures | sampling",
        "student | evaluation",
        "preparation",
        "scores",
        "teachers",
        "reporting",
        "applications | cluster | ray_tensors | storage",
    ),
    "tide_core": (
        "evaluation",
        "training",
        "scoring",
        "samplers",
        "objective",
        "losses | models | data",
        "masks",
        "alignment | planning",
        "checkpoints | schedules | studies | queueing | tracing",
        "contracts",
    ),
    "tide": (
        "cli",
        "client | async_client",
        "connecting | operations",
        "transport",
        "errors | instance",
    ),
    "": ("service | workers", "tide", "tide_core"),
}
"""Top to bottom; siblings, between bars, do not import each other."""
FORBIDDEN: dict[str, set[str]] = {
    "service": {
        "torch",
        "transformers",
        "ray",
        "pyarrow",
        "datasets",
        "tide_core.masks",
        "tide_core.losses",
        "tide_core.models",
        "tide_core.data",
        "tide_core.objective",
        "tide_core.samplers",
        "tide_core.schedules",
        "tide_core.scoring",
        "tide_core.training",
        "tide_core.evaluation",
    },
    "service.orchestrator.decide": {"sqlalchemy", "fastapi", "service.db", "service.settings"},
    "service.orchestrator.pools": {"sqlalchemy", "fastapi", "service.db", "service.settings"},
    "service.orchestrator.compute": {"sqlalchemy", "fastapi", "ray", "httpx"},
    "tide_core": {"ray", "fastapi", "starlette", "sqlalchemy", "httpx", "uvicorn"},
    "tide_core.contracts": {"torch", "ray", "transformers", "pyarrow", "tokenizers", "fsspec"},
    "tide_core.checkpoints": {"torch", "ray", "transformers", "pyarrow", "safetensors", "fsspec"},
    "tide_core.planning": {"torch", "ray", "transformers", "pyarrow", "tokenizers", "fsspec"},
    "tide": {"torch", "ray", "transformers", "pyarrow", "datasets", "fastapi", "starlette", "sqlalchemy"},
    "workers": {"sqlalchemy", "alembic", "fastapi"},
}
IGNORED: set[str] = set()
"""Imports that may break a layer: none."""

Contract = dict[str, Any]


def contracts() -> list[Contract]:
    """The contracts as pyproject.toml declares them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == set(PACKAGES)
    assert settings["include_external_packages"] is True
    return list(settings["contracts"])


def layers_of(contract: Contract) -> list[list[str]]:
    """The modules of each layer, top to bottom, without their container's name."""
    names = [[name.strip() for name in re.split(r"[|:]", layer)] for layer in contract["layers"]]
    return [[re.sub(r"^tide_core\.", "", name.strip("()")) for name in layer] for layer in names]


def container_of(contract: Contract) -> str:
    containers = contract.get("containers", ())
    if containers:
        (container,) = containers
        return str(container)
    return "tide_core" if all(layer.startswith("tide_core.") for layer in contract["layers"]) else ""


def layer_contract(container: str) -> Contract:
    found = [entry for entry in contracts() if entry["type"] == "layers" and container_of(entry) == container]
    (contract,) = found
    return contract


@pytest.mark.parametrize("container", LAYERS)
def test_no_layer_is_lost_or_moved(container: str) -> None:
    contract = layer_contract(container)
    places = {name: number for number, layer in enumerate(layers_of(contract)) for name in layer}
    promised = [layer.split(" | ") for layer in LAYERS[container]]
    for number, layer in enumerate(promised):
        for name in layer:
            assert name in places, f"{name} is in no layer of {container or 'the packages'}"
            for lower in itertools.chain.from_iterable(promised[number + 1 :]):
                assert places[name] < places[lower], f"{name} must stand above {lower}"
        assert len({places[name] for name in layer}) == 1, f"{layer} must not import each other"
    assert not any(":" in layer for layer in contract["layers"]), "siblings are independent of each other"


@pytest.mark.parametrize("container", PACKAGES)
def test_a_new_folder_must_be_placed(container: str) -> None:
    contract = layer_contract(container)
    assert contract["exhaustive"] is True
    assert not contract.get("exhaustive_ignores")


@pytest.mark.parametrize("module", FORBIDDEN)
def test_nothing_forbidden_is_allowed(module: str) -> None:
    forbidden = {
        name
        for contract in contracts()
        if contract["type"] == "forbidden" and module in contract["source_modules"]
        for name in contract["forbidden_modules"]
    }
    assert FORBIDDEN[module] <= forbidden, f"{module} may suddenly import {FORBIDDEN[module] - forbidden}"


def test_both_sides_are_independent() -> None:
    (contract,) = [entry for entry in contracts() if entry["type"] == "independence"]
    assert set(contract["modules"]) == {"service", "workers"}


def test_no_import_is_ignored_beyond_the_list() -> None:
    ignored = {line for contract in contracts() for line in contract.get("ignore_imports", ())}
    assert ignored <= IGNORED, f"{sorted(ignored - IGNORED)}: move the code instead"
    assert not any(contract.get("allow_indirect_imports") for contract in contracts())


def test_every_contract_notices_a_breach(tmp_path: Path) -> None:
    """In a copy of the sources each contract is broken once; import-linter reports each under its name."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=_leave_all_but_sources)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    breaches = {contract["name"]: _breach(contract) for contract in contracts()}
    for importer, imported in breaches.values():
        path = tmp_path.joinpath(*importer.split("."))
        with (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).open("a") as source:
            source.write(f"\nimport {imported}\n")
    said = _lint(tmp_path)
    for name, (importer, imported) in breaches.items():
        report = said.partition(f"\n{name}\n{'-' * len(name)}\n")[2]
        assert report, f"the contract '{name}' did not break"
        assert f"{importer} -> {imported} (" in report.replace("\n", " "), name


def _leave_all_but_sources(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (name.endswith(".py") or Path(folder, name).is_dir())}


def _breach(contract: Contract) -> tuple[str, str]:
    """An importer and what it must not import under a contract."""
    if contract["type"] == "independence":
        return "service", "workers"
    if contract["type"] == "forbidden":
        return contract["source_modules"][0], contract["forbidden_modules"][0]
    container, layers = container_of(contract), layers_of(contract)
    names = [f"{container}.{name}".strip(".") for layer in (layers[0], layers[-1]) for name in sorted(layer)]
    existing = [name for name in names if _exists(name)]
    return existing[-1], existing[0]


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def _lint(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "400", "PATH": ""},
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folders_import_each_other_in_a_circle(package: str) -> None:
    """Found from the sources alone, without import-linter and its contracts."""
    graph: dict[str, set[str]] = {}
    for found in read_imports(package):
        if not any(_is_ignored(line, found.importer, found.imported) for line in IGNORED):
            graph.setdefault(found.source, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def _is_ignored(line: str, importer: str, imported: str) -> bool:
    source, target = line.split(" -> ")
    return importer == source and f"{imported}.".startswith(f"{target.removesuffix('*')}".rstrip(".") + ".")

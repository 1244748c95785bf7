"""Every command that a container of ours starts is one that its program's own parser takes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click import Command, Context
from ray.scripts.scripts import start as ray_start

from tests.support.deploy.dockerfile import last
from tests.support.deploy.kuberay import head_container, quantity, worker_container
from tests.support.deploy.manifests import MATRIX, Manifest, one
from tide.cli.main import build_app

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
Render = Callable[..., list[Manifest]]


def parsed(command: list[str]) -> dict[str, Any]:
    """What the program understands; it does nothing else."""
    program, *rest = command
    if program == "ray":
        assert rest[0] == "start"
        return _parameters(ray_start, rest[1:])
    assert program == "tide"
    group = typer.main.get_command(build_app(rest[0]))
    return _parameters(group.commands[rest[0]], rest[1:])  # type: ignore[attr-defined]


def _parameters(command: Command, arguments: list[str]) -> dict[str, Any]:
    context: Context = command.make_context(command.name, list(arguments))
    return dict(context.params)


def _ray_commands(manifests: list[Manifest]) -> Iterator[tuple[str, list[str]]]:
    cluster = one(manifests, "RayCluster")
    containers = {"head": head_container(cluster, "head")}
    for group in cluster["spec"]["workerGroupSpecs"]:
        containers[group["groupName"]] = worker_container(cluster, group["groupName"], "worker")
    for name, container in containers.items():
        (script,) = container["args"]
        yield name, shlex.split(script.partition("; ")[2])


@pytest.mark.parametrize("name", MATRIX)
def test_ray_takes_what_kuberay_makes_of_the_chart(render: Render, name: str) -> None:
    profile, sets = MATRIX[name]
    manifests = render(profile, sets)
    commands = dict(_ray_commands(manifests))
    assert len(commands) >= 2
    for role, command in commands.items():
        taken = parsed(command)
        assert taken["block"] is True
        assert taken["metrics_export_port"] == 8080
        assert taken["head"] is (role == "head")
        if role == "head":
            assert (taken["num_cpus"], taken["dashboard_host"]) == (0, "0.0.0.0")
        else:
            assert taken["address"].endswith("-head-svc.tide.svc.cluster.local:6379")
            assert taken["num_cpus"] >= 1


def test_kuberay_passes_a_groups_gpus_on(render: Render) -> None:
    commands = dict(_ray_commands(render("large-cluster")))
    assert {role: parsed(command)["num_gpus"] for role, command in commands.items()} == {
        "head": None, "cpu": None, "trainers": 8, "teachers": 1, "teachers-l40s": 1
    }  # fmt: skip


def test_quantities_are_read_as_kubernetes_does() -> None:
    assert [quantity(text) for text in ("500m", "2", "1Gi", "1.5Ki", "1G", "2500m")] == [
        1, 2, 2**30, 1536, 10**9, 3
    ]  # fmt: skip


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(Exception, match=r"No such option.*metric-export-port"):
        parsed(["ray", "start", "--metric-export-port=1"])
    with pytest.raises(Exception, match=r"No such option.*hosst"):
        parsed(["tide", "serve", "--hosst=1"])


def test_composes_commands_are_taken() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    commands = {name: each["command"] for name, each in services.items() if "command" in each}
    assert set(commands) == {"ray-head", "ray-worker"}
    head, worker = parsed(commands["ray-head"]), parsed(commands["ray-worker"])
    assert (head["head"], head["block"], head["port"], head["num_cpus"]) == (True, True, 6379, 0)
    assert (worker["address"], worker["block"]) == ("ray-head:6379", True)
    assert head["metrics_export_port"] == worker["metrics_export_port"] == 8080


@pytest.mark.parametrize("name", MATRIX)
def test_the_control_planes_commands_are_taken(render: Render, name: str) -> None:
    profile, sets = MATRIX[name]
    container = one(render(profile, sets), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == json.loads(last("control-plane", "CMD"))
    parsed(container["command"])

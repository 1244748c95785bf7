"""Images built step by step as their Dockerfiles say, and what their containers then see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.deploy.dockerfile import DOCKER, last, stages
from tests.support.deploy.image_builder import Builder, BuildError

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = sorted(path.stem for path in DOCKER.glob("*.Dockerfile"))


def built(name: str, folder: Path, arguments: dict[str, str] | None = None) -> Iterator[Builder]:
    """An image, until the caller is done with it."""
    if os.geteuid() != 0 or shutil.which("nsenter") is None:
        pytest.skip("an image is built in namespaces with mounts: that needs root and util-linux")
    builder = Builder(name, folder, arguments)
    try:
        builder.build()
        yield builder
    finally:
        builder.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """The built image of the control plane."""
    yield from built("control-plane", tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def torch_index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A package index that has the CPU build of torch: the given one, or one of what pip finds here."""
    if given := os.environ.get("TIDE_TORCH_INDEX_URL"):
        return given
    lines = (DOCKER / "workers-cpu.lock").read_text().splitlines()
    (locked,) = [line.split()[0] for line in lines if line.startswith("torch==")]
    folder = tmp_path_factory.mktemp("index")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "torch")]
    done = subprocess.run([*pip, locked], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"no {locked} here: set TIDE_TORCH_INDEX_URL ({done.stderr.strip()[-200:]})")
    (wheel,) = (folder / "torch").glob("*.whl")
    (folder / "torch" / "index.html").write_text(f'<a href="{quote(wheel.name)}">{wheel.name}</a>')
    return folder.as_uri()


@pytest.fixture(scope="module")
def worker(torch_index: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """The built image of Ray's head and CPU workers."""
    arguments = {"TORCH_INDEX_URL": torch_index}
    yield from built("workers-cpu", tmp_path_factory.mktemp("worker"), arguments)


def test_the_command_starts(image: Builder) -> None:
    program, *arguments = json.loads(last("control-plane", "CMD"))
    assert "Run the control plane alone" in image.run(program, *arguments, "--help").stdout


def test_no_torch_and_no_ray_come_along(image: Builder) -> None:
    for module in ("torch", "ray", "transformers", "pip", "setuptools"):
        done = image.run("python", "-c", f"import {module}", check=False)
        assert "ModuleNotFoundError" in done.stderr, module
    image.run(
        "python", "-c", "import service.app, service.migrations.migrate, tide_core.contracts, s3fs, asyncpg"
    )


def test_the_package_is_the_images_own(image: Builder) -> None:
    where = image.run("python", "-c", "import service; print(service.__path__[0])").stdout
    assert where.startswith("/opt/tide/lib/")


def test_it_runs_as_a_user_who_may_write_only_where_data_goes(image: Builder) -> None:
    assert image.run("id", "-u").stdout.strip() == "10001"
    image.run("touch", "/var/lib/tide/data/x", "/var/lib/tide/storage/x")
    with pytest.raises(BuildError, match="Permission denied"):
        image.run("touch", "/opt/tide/x")


def test_the_health_check_fails_without_a_server_and_passes_with_one(image: Builder) -> None:
    check = json.loads(last("control-plane", "HEALTHCHECK").partition("CMD ")[2])
    with pytest.raises(BuildError, match="refused"):
        image.run(*check)
    serve = " ".join(json.loads(last("control-plane", "CMD")))
    waits = 'for _ in $(seq 120); do "$@" 2>/dev/null && break; sleep 0.5; done'
    serve = f"TIDE_AUTHENTICATION=tokens {serve}"  # it listens on every address
    script = f'{serve} 2>/tmp/log & server=$!; {waits}; "$@"; status=$?; kill $server; wait; exit $status'
    image.run("bash", "-uc", script, "check", *check)


def test_the_bill_of_materials_lists_what_is_installed(image: Builder) -> None:
    assert_bill_is_complete(image)


def assert_bill_is_complete(image: Builder) -> None:
    """Every package in the image is in its bill of materials, and nothing else."""
    bill: dict[str, Any] = json.loads(image.run("cat", "/opt/tide/sbom.cdx.json").stdout)
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "tide-distill"
    lister = (
        "from importlib.metadata import distributions as d; print(*{x.name.lower() for x in d()}, sep='\\n')"
    )
    installed = set(image.run("python", "-c", lister).stdout.split())
    listed = {each["name"].lower() for each in bill["components"]}
    assert listed | {"tide-distill"} == installed
    assert all(each["purl"].startswith("pkg:pypi/") and each["version"] for each in bill["components"])


def test_the_workers_command_starts(worker: Builder) -> None:
    program, *arguments = json.loads(last("workers-cpu", "CMD"))
    assert worker.run(program, *arguments).stdout.startswith("ray, version 2.")


def test_a_worker_holds_torch_for_the_cpu_and_neither_cuda_nor_pip(worker: Builder) -> None:
    what = "import torch as t; print(t.__version__, t.version.cuda, t.ones(2, 2).mm(t.ones(2, 2)).sum())"
    version, cuda, total = worker.run("python", "-c", what).stdout.split()
    assert version.endswith("+cpu")
    assert cuda == "None"
    assert total == "tensor(8.)"
    worker.run("python", "-c", "import workers.main, workers.teachers.app, workers.student.loop, ray.serve")
    assert "ModuleNotFoundError" in worker.run("python", "-c", "import pip", check=False).stderr
    listing = worker.run(
        "sh", "-c", "ls /opt/tide/lib/python3.11/site-packages | grep -ci nvidia", check=False
    )
    assert listing.stdout.strip() == "0"


def test_a_worker_writes_only_where_models_and_storage_go(worker: Builder) -> None:
    assert worker.run("id", "-u").stdout.strip() == "10001"
    worker.run("touch", "/var/cache/tide/x", "/var/lib/tide/storage/x")
    with pytest.raises(BuildError, match="Permission denied"):
        worker.run("touch", "/opt/tide/x")


def test_the_workers_bill_of_materials_lists_what_is_installed(worker: Builder) -> None:
    assert_bill_is_complete(worker)


def test_the_probes_program_is_there(worker: Builder) -> None:
    program, *_ = json.loads(last("workers-cpu", "HEALTHCHECK").partition("CMD ")[2])
    assert "GNU Wget" in worker.run(program, "--version").stdout


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_carries_its_bill_of_materials(name: str) -> None:
    build, final = stages(name)
    (step,) = [each.value for each in build if each.name == "RUN" and "cyclonedx-py" in each.value]
    assert step.index("uninstall --yes") < step.index("cyclonedx-py environment"), "it lists what stays"
    assert "--validate" in step
    assert "--output-file /opt/tide/sbom.cdx.json" in step
    assert any(each.name == "COPY" and each.value == "--from=build /opt/tide /opt/tide" for each in final)

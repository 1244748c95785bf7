"""The control plane's image, built step by step as its Dockerfile says, and what its containers then see."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from dockerfile import DOCKER, last, stages
from image_builder import Builder, BuildError

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(900)]

IMAGES = sorted(path.stem for path in DOCKER.glob("*.Dockerfile"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """The built image."""
    if os.geteuid() != 0 or shutil.which("nsenter") is None:
        pytest.skip("an image is built in namespaces with mounts: that needs root and util-linux")
    builder = Builder("control-plane", tmp_path_factory.mktemp("image"))
    try:
        builder.build()
        yield builder
    finally:
        builder.close()


def test_the_command_starts(image: Builder) -> None:
    program, *arguments = json.loads(last("control-plane", "CMD"))
    assert "Run the control plane alone" in image.run(program, *arguments, "--help").stdout


def test_no_torch_and_no_ray_come_along(image: Builder) -> None:
    for module in ("torch", "ray", "transformers", "pip", "setuptools"):
        done = image.run("python", "-c", f"import {module}", check=False)
        assert "ModuleNotFoundError" in done.stderr, module
    image.run("python", "-c", "import service.app, service.db.migrate, tide_core.contracts, s3fs, asyncpg")


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


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_carries_its_bill_of_materials(name: str) -> None:
    build, final = stages(name)
    (step,) = [each.value for each in build if each.name == "RUN" and "cyclonedx-py" in each.value]
    assert step.index("uninstall --yes") < step.index("cyclonedx-py environment"), "it lists what stays"
    assert "--validate" in step
    assert "--output-file /opt/tide/sbom.cdx.json" in step
    assert any(each.name == "COPY" and each.value == "--from=build /opt/tide /opt/tide" for each in final)

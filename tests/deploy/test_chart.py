"""The chart renders over a matrix of values into valid manifests, and refuses what is misspelt."""

from __future__ import annotations

import base64
import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.access.client_tokens import identify, register_bootstrap
from service.db.session import Database
from service.migrations.migrate import upgrade
from service.settings import Settings
from tests.support.deploy.kuberay import quantity
from tests.support.deploy.manifests import MATRIX, Manifest, one, pod_specs
from tests.support.fetching import CRDS
from tide_core.contracts.placement import PURPOSE_LABEL, Purpose, labels_for

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "tide"
KUBERNETES = ("1.33", "1.36")
CUSTOM = ("ray.io", "monitoring.coreos.com", "gateway.networking.k8s.io")
GOLDEN = Path(__file__).parent / "golden"

Run = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Manifest]]


@pytest.mark.parametrize("profile", [None, "kind-cpu", "single-node-8-gpu", "large-cluster"])
def test_lint_is_strict(run_helm: Run, profile: str | None) -> None:
    values = [] if profile is None else ["--values", str(CHART / "profiles" / f"{profile}.yaml")]
    result = run_helm("lint", "--strict", str(CHART), *values)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("contolPlane.replicas=3", "contolPlane"),
        ("controlPlane.replica=3", "replica"),
        ("ray.workerGroups.cpu.gpu=1", "gpu"),
        ("controlPlane.resources.limits.memory=1 GiB", "memory"),
        ("images.controlPlane.tag=latest", "tag"),
        ("storage.url=not-a-url", "url"),
        ("ray.workerGroups.extra.enabled=true", "extra"),
        ("ray.head.sharedMemory=2G", "sharedMemory"),
        ("ray.workerGroups.cpu.purpose=anything", "purpose"),
        ("monitoring.rules.enabled=yes-please", "enabled"),
        ("ray.workerGroups.cpu.gpus=2", "without CUDA"),
        ("ray.workerGroups.cpu.minReplicas=9", "above maxReplicas"),
        ("ray.workerGroups.cpu.enabled=false", "at least one"),
        ("ray.placeByPurpose=true", "purpose: trainer"),
        ("ray.placeByPurpose=maybe", "placeByPurpose"),
        ("controlPlane.teacherQueueDelaySeconds=0", "teacherQueueDelaySeconds"),
        ("ray.faultTolerance.enabled=true", "redisAddress"),
        ("httpRoute.enabled=true", "parentRefs"),
        ("ingress.enabled=true", "networkPolicy.clients"),
        ("authentication.enabled=tokens", "enabled"),
        ("authentication.mode=tokens", "mode"),
        ("authentication.bootstrapToken.secretName=", "secretName"),
    ],
)
def test_wrong_values_are_refused_and_named(run_helm: Run, setting: str, named: str) -> None:
    result = run_helm("template", "tide", str(CHART), "--set", setting)
    assert result.returncode != 0, f"{setting} was accepted"
    assert named in result.stderr


@pytest.mark.parametrize("name", MATRIX)
@pytest.mark.parametrize("version", KUBERNETES)
def test_core_manifests_are_valid(renders: dict[str, list[Manifest]], name: str, version: str) -> None:
    checked = 0
    for manifest in renders[name]:
        if manifest["apiVersion"].partition("/")[0] in CUSTOM:
            continue
        kubernetes_validate.validate(manifest, version, strict=True)
        checked += 1
    assert checked >= 6


def test_the_validator_finds_a_misspelt_field(renders: dict[str, list[Manifest]]) -> None:
    broken = copy.deepcopy(one(renders["defaults"], "Deployment"))
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(broken, KUBERNETES[0], strict=True)


def _closed(schema: Any) -> Any:
    """A CRD's schema as plain JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items() if key != "format"}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(made.get("properties"), dict) and "type" in schema and not is_open:
        made["additionalProperties"] = False
    return made


@pytest.fixture(scope="session")
def validators() -> dict[tuple[str, str], jsonschema.protocols.Validator]:
    """(apiVersion, kind) -> validator, for the custom resources that the chart may make."""
    wanted = ("rayclusters", "servicemonitors", "podmonitors", "prometheusrules")
    made = {}
    for path in sorted(CRDS.glob("*.yaml")):
        if not path.stem.endswith(wanted):
            continue
        definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in definition["versions"]:
            schema = _closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
            made[key] = jsonschema.Draft7Validator(schema)
    return made


@pytest.mark.custom_resources
@pytest.mark.parametrize("name", MATRIX)
def test_custom_resources_are_valid(
    renders: dict[str, list[Manifest]], validators: dict[tuple[str, str], Any], name: str
) -> None:
    checked = 0
    for manifest in renders[name]:
        validator = validators.get((manifest["apiVersion"], manifest["kind"]))
        if validator is not None:
            errors = [
                f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)
            ]
            assert not errors, errors
            checked += 1
    assert checked >= 1


@pytest.mark.custom_resources
def test_the_definitions_refuse_an_unknown_field(
    renders: dict[str, list[Manifest]], validators: dict[tuple[str, str], Any]
) -> None:
    cluster = copy.deepcopy(one(renders["defaults"], "RayCluster"))
    cluster["spec"]["headGroupSpec"]["rayStartParam"] = {}
    errors = list(validators[cluster["apiVersion"], "RayCluster"].iter_errors(cluster))
    assert any("rayStartParam" in error.message for error in errors)


def _names(manifests: list[Manifest]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in manifests}


@pytest.mark.parametrize("name", MATRIX)
def test_names_are_unique_and_the_namespace_is_given(renders: dict[str, list[Manifest]], name: str) -> None:
    assert len(_names(renders[name])) == len(renders[name])
    assert all(each["metadata"].get("namespace") == "tide" for each in renders[name])


@pytest.mark.parametrize("name", MATRIX)
def test_every_reference_leads_somewhere(renders: dict[str, list[Manifest]], name: str) -> None:
    """Claims and accounts that pods name are in the render, or were named by the user."""
    given = {"shared", "models"}
    there = _names(renders[name])
    for manifest in renders[name]:
        for _, _, pod in pod_specs(manifest):
            account = pod.get("serviceAccountName")
            assert account is None or ("ServiceAccount", account) in there
            for volume in pod.get("volumes", ()):
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or claim in given or ("PersistentVolumeClaim", claim) in there
            volumes = {volume["name"] for volume in pod.get("volumes", ())}
            claims = {each["metadata"]["name"] for each in manifest["spec"].get("volumeClaimTemplates", ())}
            mounts = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
            assert mounts <= volumes | claims


def test_the_control_planes_environment_is_what_its_settings_know(
    renders: dict[str, list[Manifest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    container = one(renders["large-cluster"], "Deployment")["spec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        assert variable["name"].removeprefix("TIDE_").lower() in Settings.model_fields
        monkeypatch.setenv(variable["name"], variable.get("value", "secret://given"))
    settings = Settings()
    assert settings.resolved_control_url == "http://tide-control-plane.tide.svc:8700"
    assert settings.ray_address == "http://tide-head-svc.tide.svc:8265"
    assert settings.resolved_storage == "s3://tide/production"
    assert settings.migrate_on_start is False
    assert settings.place_by_purpose is True
    assert settings.teacher_shrink_seconds == 300


def test_the_token_of_ray_is_on_by_default_and_one_secret_serves_both_sides(
    renders: dict[str, list[Manifest]],
) -> None:
    for name, secret in (("defaults", "tide"), ("own-secrets", "ray-token")):
        cluster = one(renders[name], "RayCluster")
        options = cluster["spec"]["authOptions"]
        assert options["mode"] == "token"
        assert options.get("secretName", cluster["metadata"]["name"]) == secret
        container = one(renders[name], "Deployment")["spec"]["template"]["spec"]["containers"][0]
        token = next(each for each in container["env"] if each["name"] == "TIDE_RAY_AUTH_TOKEN")
        assert token["valueFrom"]["secretKeyRef"] == {"name": secret, "key": "auth_token"}
    bare = one(renders["bare"], "RayCluster")
    assert bare["spec"]["authOptions"] == {"mode": "disabled"}


def _environment(manifests: list[Manifest]) -> dict[str, Any]:
    container = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_clients_need_a_token_unless_the_operator_says_otherwise(
    renders: dict[str, list[Manifest]], render: Render
) -> None:
    for name, secret, key in (
        ("defaults", "tide-bootstrap-token", "token"),
        ("own-secrets", "first-token", "editor"),
    ):
        environment = _environment(renders[name])
        assert environment["TIDE_AUTHENTICATION"] == "tokens"
        assert environment["TIDE_BOOTSTRAP_TOKEN"] == {"secretKeyRef": {"name": secret, "key": key}}
        assert "TIDE_ALLOW_UNAUTHENTICATED" not in environment
    environment = _environment(renders["bare"])
    assert (environment["TIDE_AUTHENTICATION"], environment["TIDE_ALLOW_UNAUTHENTICATED"]) == ("off", "true")


async def test_a_generated_token_is_random_kept_and_one_that_is_taken(
    renders: dict[str, list[Manifest]], render: Render, tmp_path: Path
) -> None:
    again = render(*MATRIX["generated-token"])
    secrets = [one(manifests, "Secret") for manifests in (renders["generated-token"], again)]
    assert _environment(again)["TIDE_BOOTSTRAP_TOKEN"]["secretKeyRef"]["name"] == "tide-bootstrap-token"
    assert all(each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for each in secrets)
    first, second = (base64.b64decode(each["data"]["token"]).decode() for each in secrets)
    assert first != second
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'tide.db'}")
    await upgrade(database)
    async with database.write() as session:
        await register_bootstrap(session, first)
    assert (await identify(database, first)).name == "bootstrap"
    await database.close()


def test_a_migration_runs_before_new_pods_and_after_a_built_in_database(
    renders: dict[str, list[Manifest]],
) -> None:
    for name, hooks in (("defaults", "pre-install,pre-upgrade"), ("kind-cpu", "post-install,pre-upgrade")):
        job = one(renders[name], "Job", "migration")
        assert job["metadata"]["annotations"]["helm.sh/hook"] == hooks
    assert not [each for each in renders["bare"] if each["kind"] == "Job"]
    container = one(renders["bare"], "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "TIDE_MIGRATE_ON_START", "value": "true"} in container["env"]


@pytest.mark.parametrize("name", MATRIX)
def test_hooks_leave_nothing_behind(renders: dict[str, list[Manifest]], name: str) -> None:
    """Helm forgets a hook's objects: uninstalling a release does not delete them."""
    for manifest in renders[name]:
        annotations = manifest["metadata"].get("annotations", {})
        if "helm.sh/hook" in annotations:
            assert "hook-succeeded" in annotations["helm.sh/hook-delete-policy"].split(",")


def test_a_new_version_does_not_restart_the_built_in_database(renders: dict[str, list[Manifest]]) -> None:
    template = one(renders["kind-cpu"], "StatefulSet")["spec"]["template"]
    assert "app.kubernetes.io/version" not in template["metadata"]["labels"]
    assert "helm.sh/chart" not in template["metadata"]["labels"]


def test_an_upgrade_ends_no_job(render: Render) -> None:
    """Another version changes images, and neither selectors nor names nor what KubeRay would recreate."""
    old, new = (
        render(),
        render(None, ("images.workersCpu.tag=9.9.9", "images.controlPlane.tag=9.9.9"), "--is-upgrade"),
    )
    for kind in ("Deployment", "PodDisruptionBudget", "Service"):
        assert one(old, kind)["spec"]["selector"] == one(new, kind)["spec"]["selector"]
    assert _names(old) == _names(new)
    assert one(new, "RayCluster")["spec"]["upgradeStrategy"] == {"type": "None"}
    rolling = one(new, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0


def test_scaling_belongs_to_one_of_two(renders: dict[str, list[Manifest]]) -> None:
    assert one(renders["defaults"], "Deployment")["spec"]["replicas"] == 2
    assert "replicas" not in one(renders["large-cluster"], "Deployment")["spec"]
    assert one(renders["large-cluster"], "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 3
    assert not [each for each in renders["kind-cpu"] if each["kind"] == "PodDisruptionBudget"]


def test_gpu_groups_ask_for_their_gpus_and_nothing_else_does(renders: dict[str, list[Manifest]]) -> None:
    cluster = one(renders["large-cluster"], "RayCluster")
    wanted = {}
    for name, _, pod in pod_specs(cluster):
        resources = pod["containers"][0]["resources"]
        gpus = resources["limits"].get("nvidia.com/gpu", 0)
        assert resources["requests"].get("nvidia.com/gpu", 0) == gpus
        assert ("cuda" in pod["containers"][0]["image"]) is (gpus > 0)
        wanted[name] = gpus
    assert wanted == {
        "tide-head": 0, "tide-cpu": 0, "tide-trainers": 8, "tide-teachers": 1, "tide-teachers-l40s": 1
    }  # fmt: skip


@pytest.mark.parametrize("name", MATRIX)
def test_rays_object_store_fits_into_shared_memory(renders: dict[str, list[Manifest]], name: str) -> None:
    """Larger, and Ray would put it on disk."""
    spec = one(renders[name], "RayCluster")["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        store = int(group["rayStartParams"]["object-store-memory"])
        volumes = {each["name"]: each for each in group["template"]["spec"]["volumes"]}
        room = quantity(volumes["shared-memory"]["emptyDir"]["sizeLimit"])
        assert 0.85 * room < store < 0.95 * room


@pytest.mark.parametrize("name", MATRIX)
def test_every_group_says_what_its_nodes_are_for(renders: dict[str, list[Manifest]], name: str) -> None:
    """What the control plane makes teachers and trainers ask for is what the groups offer."""
    container = one(renders[name], "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    groups = one(renders[name], "RayCluster")["spec"]["workerGroupSpecs"]
    for group in groups:
        assert "labels" not in group["rayStartParams"], "KubeRay refuses them there"
        assert group["labels"].keys() == {PURPOSE_LABEL}
        assert group["labels"].items() <= group["template"]["metadata"]["labels"].items()
    if environment["TIDE_PLACE_BY_PURPOSE"] == "true":
        offered = [group["labels"] for group in groups]
        assert all(labels_for(purpose) in offered for purpose in Purpose)
    assert environment["TIDE_PLACE_BY_PURPOSE"] == (
        "true" if name in ("single-node-8-gpu", "large-cluster", "outside") else "false"
    )


@pytest.mark.parametrize("name", ["defaults", "kind-cpu", "large-cluster"])
def test_renders_are_the_reviewed_ones(renders: dict[str, list[Manifest]], name: str) -> None:
    """To accept a change: TIDE_WRITE_GOLDEN=1 pytest tests/deploy -k reviewed, then read the diff."""
    kept = [each for each in renders[name] if "dashboard" not in each["metadata"]["name"]]
    text = yaml.safe_dump_all(kept, sort_keys=True, width=110)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("TIDE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()

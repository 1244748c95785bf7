"""Whatever the chart renders is put to a real API server, which says what is wrong with it.

`make api-server` builds the server; `TIDE_KUBE_BIN` names the folder with its programs. It is Kubernetes
1.20. What it cannot take as the chart writes it is listed here (`NOT_AS_WRITTEN`), and checked as written
against the schemas of newer versions alone, in `test_chart`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.deploy.api_server import ApiServer, RefusedError
from tests.support.deploy.installer import CHART, Installer, make_namespace, objects
from tests.support.deploy.kuberay import head_container, worker_container
from tests.support.deploy.manifests import MATRIX, Manifest, one, pod_specs
from tests.support.deploy.old_kubernetes import adapted

pytestmark = [pytest.mark.custom_resources, pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(600)]

NOT_AS_WRITTEN = {
    ("policy/v1", "PodDisruptionBudget"),  # asked as policy/v1beta1
    ("autoscaling/v2", "HorizontalPodAutoscaler"),  # asked as autoscaling/v2beta2
    ("networking.k8s.io/v1", "NetworkPolicy"),  # asked without ranges of ports
    ("v1", "Service"),  # asked with the default protocol spelt out
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),  # not asked: its definition is not there
}


@pytest.fixture(scope="module")
def namespace(server: ApiServer, renders: dict[str, list[Manifest]]) -> str:
    """The namespace of the renders, with their accounts, which pods need to be admitted."""
    make_namespace(server, "tide")
    for manifests in renders.values():
        for manifest in manifests:
            if manifest["kind"] == "ServiceAccount":
                server.apply(manifest, force="true")
    return "tide"


def dropped(sent: Any, kept: Any, place: str = "") -> list[str]:
    """Places of fields that were sent and are not in the answer: unknown ones of custom resources end so."""
    if isinstance(sent, dict):
        gone = [f"{place}.{name}" for name in sent if name not in kept]
        both = [(sent[name], kept[name], f"{place}.{name}") for name in sent if name in kept]
    elif isinstance(sent, list):
        gone = [f"{place}.{number}" for number in range(len(kept), len(sent))]
        both = [(*pair, f"{place}.{number}") for number, pair in enumerate(zip(sent, kept, strict=False))]
    else:
        return []
    return gone + [each for parts in both for each in dropped(*parts)]


@pytest.mark.parametrize("name", MATRIX)
def test_every_object_is_accepted(
    server: ApiServer, namespace: str, renders: dict[str, list[Manifest]], name: str
) -> None:
    """A dry run of a server-side apply: defaults, schema, validation and admission, all but the writing."""
    for manifest in renders[name]:
        asked = adapted(manifest)
        if asked is None:
            assert (manifest["apiVersion"], manifest["kind"]) in NOT_AS_WRITTEN
            continue
        assert dropped(asked, server.apply(asked, dryRun="All", force="true")) == []
        if asked != manifest:
            assert (manifest["apiVersion"], manifest["kind"]) in NOT_AS_WRITTEN


@pytest.mark.parametrize("name", MATRIX)
def test_every_pod_of_ray_is_accepted(
    server: ApiServer, namespace: str, renders: dict[str, list[Manifest]], name: str
) -> None:
    """The definition of a RayCluster takes any pod that has the right fields; the server knows better."""
    cluster = one(renders[name], "RayCluster")
    for pod_name, labels, spec in pod_specs(cluster):
        group = pod_name.removeprefix(f"{cluster['metadata']['name']}-")
        container = (
            head_container(cluster, pod_name)
            if group == "head"
            else worker_container(cluster, group, pod_name)
        )
        metadata = {"name": pod_name, "namespace": namespace, "labels": labels}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec | {"containers": [container]},
        }
        made = server.create(pod, dryRun="All")
        mounts = {each["mountPath"] for each in made["spec"]["containers"][0]["volumeMounts"]}
        gets_token = "/var/run/secrets/kubernetes.io/serviceaccount" in mounts
        assert gets_token is (group == "head" and cluster["spec"]["enableInTreeAutoscaling"])


@pytest.mark.parametrize(
    ("kind", "place", "wrong"),
    [
        ("Deployment", "spec.template.spec.containers.0", "livenesProbe"),
        ("RayCluster", "spec.headGroupSpec", "rayStartParam"),
        ("RayCluster", "spec.workerGroupSpecs.0.template.spec.containers.0", "imagePulPolicy"),
        ("ServiceMonitor", "spec.endpoints.0", "intervall"),
        ("PrometheusRule", "spec.groups.0", "rulez"),
        ("HorizontalPodAutoscaler", "spec", "maxReplica"),
    ],
)
def test_a_misspelt_field_is_found(
    server: ApiServer, namespace: str, renders: dict[str, list[Manifest]], kind: str, place: str, wrong: str
) -> None:
    """The server refuses it in kinds of its own, and drops it from custom resources."""
    manifest = one(renders["large-cluster"], kind)
    is_custom = manifest["apiVersion"].partition("/")[0] in ("ray.io", "monitoring.coreos.com")
    part: Any = adapted(manifest)
    broken = part
    for step in place.split("."):
        part = part[int(step) if step.isdigit() else step]
    part[wrong] = {}
    if is_custom:
        assert dropped(broken, server.apply(broken, dryRun="All", force="true")) == [f".{place}.{wrong}"]
    else:
        with pytest.raises(RefusedError, match=f"{wrong}: field not declared in schema"):
            server.apply(broken, dryRun="All", force="true")


def test_helm_refuses_a_server_that_is_too_old(installer: Installer, server: ApiServer) -> None:
    make_namespace(server, "too-old")
    done = installer.put("install", "too-old", CHART)
    assert done.returncode != 0
    assert "requires kubeVersion: >=1.29.0-0" in done.stderr
    assert not objects(server, "too-old")


@pytest.mark.parametrize("flags", [(), ("--disable-openapi-validation",)])
def test_a_chart_with_a_misspelt_field_is_not_installed(
    installer: Installer, server: ApiServer, flags: tuple[str, ...]
) -> None:
    """Helm finds it in the server's schema; with that off, the server does."""
    namespace = f"misspelt-{len(flags)}"
    make_namespace(server, namespace)
    chart = installer.chart(f"0.0.{len(flags)}", readinessProbe="readinesProbe")
    done = installer.put("install", namespace, chart, *flags)
    assert done.returncode != 0
    assert "readinesProbe" in done.stderr
    assert "deployments/tide-control-plane" not in objects(server, namespace)

"""A release on a real API server: installed, scaled, upgraded, rolled back, removed; its accounts' rights.

Real are the server, its controllers, Helm and what it sends. Pods say that they run and do not (`Nodes`).
KubeRay is absent: what its autoscaler does to the RayCluster is done here, as the account that it has.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.support.deploy.api_server import ApiServer, Manifest, RefusedError
from tests.support.deploy.installer import Installer, make_namespace, objects
from tests.support.running_tide import await_true

pytestmark = [pytest.mark.custom_resources, pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(600)]

PROFILES = ("kind-cpu", "single-node-8-gpu", "large-cluster")
KEPT = {
    "kind-cpu": {"persistentvolumeclaims/data-tide-postgresql-0"},
    "single-node-8-gpu": {"persistentvolumeclaims/tide-storage"},
    "large-cluster": set(),
}
"""What `helm uninstall` leaves."""
AUTOSCALER = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "patch"]},
]
"""What KubeRay lets the head's account do: `BuildRole` in `ray-operator/controllers/ray/common/rbac.go`."""
ACCOUNTS = ("tide-control-plane", "tide-migration", "tide-ray-head", "tide-ray-worker")
JSON_PATCH = "application/json-patch+json"


def profile(name: str, chart: Any, *sets: str) -> tuple[str, ...]:
    """Flags for a profile of a chart and further values."""
    return ("--values", f"{chart}/profiles/{name}.yaml", *(flag for each in sets for flag in ("--set", each)))


def cluster_of(server: ApiServer, namespace: str) -> Manifest:
    return server.ask("GET", f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/tide")


def scales(server: ApiServer, namespace: str) -> dict[str, int]:
    """Worker group -> how many nodes it is to have."""
    groups = cluster_of(server, namespace)["spec"]["workerGroupSpecs"]
    return {group["groupName"]: group["replicas"] for group in groups}


def head_account(namespace: str) -> dict[str, str]:
    return {"Impersonate-User": f"system:serviceaccount:{namespace}:tide-ray-head"}


def bind_autoscaler(server: ApiServer, namespace: str) -> None:
    """What KubeRay does for a cluster that scales itself."""
    metadata = {"name": "autoscaler", "namespace": namespace}
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": AUTOSCALER}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "subjects": [{"kind": "ServiceAccount", "name": "tide-ray-head", "namespace": namespace}],
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "autoscaler"},
    }
    for manifest in (role, binding):
        server.create(manifest)


def autoscale(server: ApiServer, namespace: str, nodes: int) -> None:
    """What Ray's autoscaler does to grow the first group, as the account that it runs as."""
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/tide"
    change = {"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": nodes}
    headers = head_account(namespace) | {"Content-Type": JSON_PATCH}

    def is_done() -> bool:
        try:
            server.ask("PATCH", path, content=json.dumps([change]), headers=headers)
        except RefusedError as answer:
            if answer.code != 403:  # the role was made a moment ago
                raise
            return False
        return True

    await_true(is_done, "the autoscaler may scale", 10)


def of_release(found: dict[str, Manifest]) -> dict[str, Manifest]:
    """Those that Helm made and keeps, not what controllers made of them."""
    return {name: each for name, each in found.items() if "ownerReferences" not in each["metadata"]}


@pytest.mark.parametrize("name", PROFILES)
def test_a_release_from_install_to_uninstall(server: ApiServer, installer: Installer, name: str) -> None:
    make_namespace(server, name)
    old, new = installer.chart(f"0.1.0-{name}"), installer.chart(f"0.2.0-{name}")

    done = installer.put("install", name, old, *profile(name, old))
    assert done.returncode == 0, done.stderr
    before = objects(server, name)
    assert not [each for each in before if "migration" in each and not each.startswith("networkpolicies")]
    ready = before["deployments/tide-control-plane"]["status"]["readyReplicas"]
    assert ready == before["deployments/tide-control-plane"]["spec"]["replicas"]
    scales_itself = cluster_of(server, name)["spec"]["enableInTreeAutoscaling"]
    grown = scales(server, name)
    if scales_itself:
        bind_autoscaler(server, name)
        grown[next(iter(grown))] += 5
        autoscale(server, name, grown[next(iter(grown))])

    done = installer.put("upgrade", name, new, *profile(name, new), "--force-conflicts")
    assert done.returncode == 0, done.stderr
    after = objects(server, name)
    kept, changed = of_release(before), of_release(after)
    assert {each: kept[each]["metadata"]["uid"] for each in kept} == {
        each: changed[each]["metadata"]["uid"] for each in changed
    }, "an object was made anew"
    specs = {each for each in kept if kept[each].get("spec") != changed[each].get("spec")}
    assert specs == {"deployments/tide-control-plane", "rayclusters/tide"}
    assert scales(server, name) == grown, "an upgrade took nodes from running jobs"
    assert images(after)["rayclusters/tide"] == {f"0.2.0-{name}"}
    pods = {each for each in before if each.startswith("pods/tide-control-plane")}
    await_true(lambda: not pods & objects(server, name).keys(), "the old pods are gone", 30)
    if name == "kind-cpu":
        database = "pods/tide-postgresql-0"
        assert before[database]["metadata"]["uid"] == objects(server, name)[database]["metadata"]["uid"]

    done = installer("rollback", "tide", "1", "--namespace", name, "--force-conflicts")
    assert done.returncode == 0, done.stderr
    back = objects(server, name)
    assert images(back) == images(before)
    assert back["rayclusters/tide"]["metadata"]["uid"] == before["rayclusters/tide"]["metadata"]["uid"]

    done = installer("uninstall", "tide", "--namespace", name, "--wait")
    assert done.returncode == 0, done.stderr
    await_true(lambda: objects(server, name).keys() == KEPT[name], f"{KEPT[name]} alone is left", 30)
    assert not [
        each
        for each in server.list(f"/api/v1/namespaces/{name}/secrets")
        if each["type"] == "helm.sh/release.v1"
    ]

    claims = {each: found["metadata"]["uid"] for each, found in objects(server, name).items()}
    done = installer.put("install", name, new, *profile(name, new))
    assert done.returncode == 0, done.stderr
    again = objects(server, name)
    assert {each: again[each]["metadata"]["uid"] for each in claims} == claims, (
        "the data were not taken up again"
    )


def images(found: dict[str, Manifest]) -> dict[str, set[str]]:
    """Tags of our images in the manifests of a release."""
    tags = {}
    for name in ("deployments/tide-control-plane", "rayclusters/tide"):
        text = yaml.safe_dump(found[name]["spec"])
        tags[name] = {line.rpartition(":")[2] for line in text.splitlines() if "image: tide/" in line}
    return tags


@pytest.fixture(scope="module")
def installed(server: ApiServer, installer: Installer) -> str:
    """A namespace with a release that scales itself, with the role that KubeRay binds."""
    make_namespace(server, "accounts")
    chart = installer.chart("0.1.0-accounts")
    done = installer.put("install", "accounts", chart, *profile("large-cluster", chart))
    assert done.returncode == 0, done.stderr
    bind_autoscaler(server, "accounts")
    return "accounts"


def test_without_force_an_upgrade_leaves_a_scaled_cluster_alone(
    server: ApiServer, installer: Installer, installed: str
) -> None:
    """Helm does not take the groups from the autoscaler unasked, and says whose they are; the rest is new."""
    autoscale(server, installed, 7)
    chart = installer.chart("0.2.0-accounts")
    before = cluster_of(server, installed)
    done = installer.put("upgrade", installed, chart, *profile("large-cluster", chart))
    assert done.returncode != 0
    assert "conflict with" in done.stderr
    assert ".spec.workerGroupSpecs" in done.stderr
    assert cluster_of(server, installed)["spec"] == before["spec"]
    assert images(objects(server, installed))["deployments/tide-control-plane"] == {"0.2.0-accounts"}


def test_an_upgrade_keeps_to_the_new_limits(server: ApiServer, installer: Installer, installed: str) -> None:
    autoscale(server, installed, 7)
    chart = installer.chart("0.3.0-accounts")
    flags = profile("large-cluster", chart, "ray.workerGroups.cpu.maxReplicas=4")
    done = installer.put("upgrade", installed, chart, *flags, "--server-side=false")
    assert done.returncode == 0, done.stderr
    assert scales(server, installed)["cpu"] == 4


@pytest.mark.parametrize(("name", "replicas"), [("kind-cpu", 1), ("large-cluster", 0)])
def test_an_upgrade_ends_a_restore(server: ApiServer, installer: Installer, name: str, replicas: int) -> None:
    """The steps of docs/backup.md; where the control plane scales itself, the chart sets no number."""
    namespace = f"restored-{name}"
    make_namespace(server, namespace)
    chart = installer.chart(f"0.1.0-{namespace}")
    done = installer.put("install", namespace, chart, *profile(name, chart))
    assert done.returncode == 0, done.stderr
    uid = cluster_of(server, namespace)["metadata"]["uid"]
    deployment = f"/apis/apps/v1/namespaces/{namespace}/deployments/tide-control-plane"
    server.patch(f"{deployment}/scale?fieldManager=kubectl", {"spec": {"replicas": 0}})
    server.ask("DELETE", f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters/tide")

    done = installer.put("upgrade", namespace, chart, *profile(name, chart), "--force-conflicts")
    assert done.returncode == 0, done.stderr
    assert cluster_of(server, namespace)["metadata"]["uid"] != uid
    assert server.ask("GET", deployment)["spec"]["replicas"] == replicas


def test_a_generated_token_outlives_upgrades_and_its_release(server: ApiServer, installer: Installer) -> None:
    make_namespace(server, "token")
    chart = installer.chart("0.1.0-token")
    flags = profile("kind-cpu", chart, "authentication.bootstrapToken.generate=true")
    seen = []
    for verb in ("install", "upgrade", "install"):
        done = installer.put(verb, "token", chart, *flags)
        assert done.returncode == 0, done.stderr
        seen.append(
            server.ask("GET", "/api/v1/namespaces/token/secrets/tide-bootstrap-token")["data"]["token"]
        )
        if verb == "upgrade":
            done = installer("uninstall", "tide", "--namespace", "token", "--wait")
            assert done.returncode == 0, done.stderr
    assert len(set(seen)) == 1


def may(server: ApiServer, namespace: str, account: str, **attributes: str) -> bool:
    """What the server's authoriser says, for an account of the namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": [
                f"system:serviceaccounts:{namespace}",
                "system:serviceaccounts",
                "system:authenticated",
            ],
            "resourceAttributes": {"namespace": namespace} | attributes,
        },
    }
    answer = server.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", json=review)
    return bool(answer["status"]["allowed"])


def granted(rules: list[Any]) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of each thing that rules allow."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule.get("apiGroups", ("",))
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rights(server: ApiServer, namespace: str, account: str) -> set[tuple[str, str, str]]:
    """All that an account may do in the namespace, as the server tells the account."""
    group = "authorization.k8s.io/v1"
    headers = {"Impersonate-User": f"system:serviceaccount:{namespace}:{account}"}
    review = {"apiVersion": group, "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    answer = server.ask("POST", f"/apis/{group}/selfsubjectrulesreviews", json=review, headers=headers)
    return granted(answer["status"]["resourceRules"])


@pytest.mark.parametrize("account", ACCOUNTS)
def test_accounts_may_do_what_their_code_needs_and_no_more(
    server: ApiServer, installed: str, account: str
) -> None:
    """The code of the control plane, of migrations and of workers never speaks to Kubernetes."""
    own = rights(server, installed, account) - rights(server, installed, "a-stranger")
    assert own == (granted(AUTOSCALER) if account == "tide-ray-head" else set())
    for verb in ("get", "list", "create"):
        assert not may(server, installed, account, verb=verb, resource="secrets")
        assert not may(server, "default", account, verb=verb, resource="pods")
    assert not may(server, installed, account, verb="create", resource="pods")
    assert not may(
        server, installed, account, verb="create", resource="rolebindings", group="rbac.authorization.k8s.io"
    )
    scales_cluster = may(server, installed, account, verb="patch", group="ray.io", resource="rayclusters")
    assert scales_cluster is (account == "tide-ray-head")
    # KubeRay's role names no object: the head may change any pod of its namespace (docs/security.md).
    assert may(server, installed, account, verb="patch", resource="pods") is (account == "tide-ray-head")


@pytest.mark.parametrize("account", [each for each in ACCOUNTS if each != "tide-migration"])
def test_a_stolen_token_reads_no_secret(server: ApiServer, installed: str, account: str) -> None:
    path = f"/api/v1/namespaces/{installed}/serviceaccounts/{account}/token"
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [server.url]},
    }
    bearer = {"Authorization": f"Bearer {server.ask('POST', path, json=asked)['status']['token']}"}
    for secret in ("", "/tide-database"):
        with pytest.raises(RefusedError, match="forbidden") as refused:
            server.ask("GET", f"/api/v1/namespaces/{installed}/secrets{secret}", headers=bearer)
        assert refused.value.code == 403
    with pytest.raises(RefusedError, match="401"):
        server.ask("GET", "/api/v1/namespaces", headers={"Authorization": bearer["Authorization"][:-4]})


def test_no_running_pod_carries_a_token(server: ApiServer, installed: str) -> None:
    """Admission gives every pod its account's token, unless pod or account say no."""
    pods = [each for name, each in objects(server, installed).items() if name.startswith("pods/")]
    assert pods
    for pod in pods:
        mounts = {each["mountPath"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert "/var/run/secrets/kubernetes.io/serviceaccount" not in mounts

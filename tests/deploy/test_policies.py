"""What a security review asks of the manifests, and who may talk to whom by the rendered network policies."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.deploy.manifests import MATRIX, Manifest, pod_specs

Render = Callable[..., list[Manifest]]
Labels = dict[str, str]


def _violations(manifest: Manifest) -> Iterator[str]:
    if manifest["kind"] in ("Secret", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
        yield f"{manifest['kind']} is in the chart"
    for name, labels, pod in pod_specs(manifest):
        for problem in (*_pod_violations(labels, pod), *_volume_violations(pod)):
            yield f"{name}: {problem}"
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            for problem in _container_violations(container):
                yield f"{name}/{container['name']}: {problem}"


def _pod_violations(labels: Labels, pod: dict[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    if pod.get("enableServiceLinks") is not False:
        yield "gets the services' variables, TIDE_PORT among them"
    # The head alone asks Kubernetes for pods, when it scales.
    if pod.get("automountServiceAccountToken") is not False and (
        labels["app.kubernetes.io/component"] != "ray-head"
    ):
        yield "gets a token of the Kubernetes API"


def _volume_violations(pod: dict[str, Any]) -> Iterator[str]:
    for volume in pod.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= {"emptyDir", "persistentVolumeClaim"}:
            yield f"volume {volume['name']} is a {kinds}"


def _container_violations(container: dict[str, Any]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write its root file system"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    image = container["image"]
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        yield f"image {image} is not pinned"
    for side in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(container.get("resources", {}).get(side, ())):
            yield f"has no {side}"
    for variable in container.get("env", ()):
        if any(word in variable["name"] for word in ("TOKEN", "PASSWORD", "DATABASE_URL", "SECRET")) and (
            "value" in variable
        ):
            yield f"{variable['name']} stands in clear"


@pytest.mark.parametrize("name", MATRIX)
def test_no_manifest_breaks_a_policy(renders: dict[str, list[Manifest]], name: str) -> None:
    # The one secret that the chart makes, and only when it is told to.
    expected = ["Secret is in the chart"] if name == "generated-token" else []
    assert [problem for manifest in renders[name] for problem in _violations(manifest)] == expected


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("securityContext", "runAsNonRoot"), False, "root"),
        (("hostNetwork",), True, "host"),
        (("containers", 0, "image"), "tide/control-plane:latest", "pinned"),
        (("containers", 0, "resources"), {}, "limits"),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False, "write"),
        (("containers", 0, "env"), [{"name": "TIDE_RAY_AUTH_TOKEN", "value": "x"}], "clear"),
        (("volumes",), [{"name": "host", "hostPath": {"path": "/"}}], "volume"),
    ],
)
def test_each_policy_can_be_broken(render: Render, path: tuple[Any, ...], value: Any, expected: str) -> None:
    manifest = next(each for each in render() if each["kind"] == "Deployment")
    target = manifest["spec"]["template"]["spec"]
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    assert any(expected in problem for problem in _violations(manifest))


# ---- network policies, evaluated as a cluster would


class Peer:
    """An end of a connection: a pod of the release, a pod of another namespace, or an address outside."""

    def __init__(self, component: str = "", namespace: str = "tide", address: str = "") -> None:
        self.labels: Labels = {}
        if component:
            self.labels = {"app.kubernetes.io/instance": "tide", "app.kubernetes.io/component": component}
        self.namespace, self.address = namespace, address


PEERS = {
    "control-plane": Peer("control-plane"),
    "migration": Peer("migration"),
    "postgresql": Peer("postgresql"),
    "ray-head": Peer("ray-head"),
    "ray-worker": Peer("ray-worker"),
    "neighbour": Peer(namespace="tide"),
    "stranger": Peer(namespace="elsewhere"),
    "prometheus": Peer(namespace="monitoring"),
    "dns": Peer(namespace="kube-system"),
    "internet": Peer(namespace="", address="203.0.113.7"),
    "metadata": Peer(namespace="", address="169.254.169.254"),
}


def _selects(selector: dict[str, Any] | None, labels: Labels) -> bool:
    selector = selector or {}
    assert set(selector) <= {"matchLabels"}, "expressions are not evaluated here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _matches(rule_peer: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in rule_peer:
        block = rule_peer["ipBlock"]
        address = ipaddress.ip_address(peer.address) if peer.address else None
        inside = address is not None and address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", ()))
    if peer.address:
        return False
    if "namespaceSelector" in rule_peer:
        names = {"kubernetes.io/metadata.name": peer.namespace}
        is_there = _selects(rule_peer["namespaceSelector"], names)
        return is_there and _selects(rule_peer.get("podSelector"), peer.labels)
    return peer.namespace == "tide" and _selects(rule_peer["podSelector"], peer.labels)


def _has_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    if "ports" not in rule:
        return True
    return any(
        each.get("protocol", "TCP") == protocol and each["port"] <= port <= each.get("endPort", each["port"])
        for each in rule["ports"]
    )


def _side_allows(
    policies: list[Manifest], direction: str, pod: Peer, other: Peer, port: int, protocol: str
) -> bool:
    if pod.address or pod.namespace != "tide":
        return True  # not ours to decide
    applying = [
        policy["spec"]
        for policy in policies
        if _selects(policy["spec"]["podSelector"], pod.labels)
        and direction.capitalize() in policy["spec"]["policyTypes"]
    ]
    if not applying:
        return True
    key = "from" if direction == "ingress" else "to"
    return any(
        _has_port(rule, port, protocol)
        and (key not in rule or any(_matches(each, other) for each in rule[key]))
        for spec in applying
        for rule in spec.get(direction, ())
    )


def allowed(manifests: list[Manifest], source: str, target: str, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let a connection through, on both sides."""
    policies = [each for each in manifests if each["kind"] == "NetworkPolicy"]
    one, other = PEERS[source], PEERS[target]
    return _side_allows(policies, "egress", one, other, port, protocol) and _side_allows(
        policies, "ingress", other, one, port, protocol
    )


MAY_TALK = {
    ("control-plane", "ray-head", 8265),
    ("control-plane", "postgresql", 5432),
    ("control-plane", "internet", 443),
    ("migration", "postgresql", 5432),
    ("ray-head", "control-plane", 8700),
    ("ray-worker", "control-plane", 8700),
    ("ray-head", "ray-worker", 8080),
    ("ray-head", "ray-worker", 10002),
    ("ray-worker", "ray-head", 8080),
    ("ray-worker", "ray-head", 6379),
    ("ray-worker", "ray-head", 10002),
    ("ray-head", "ray-head", 6379),
    ("ray-head", "ray-head", 8080),
    ("ray-head", "ray-head", 10002),
    ("ray-head", "ray-worker", 6379),
    ("ray-head", "ray-worker", 8700),
    ("ray-worker", "ray-worker", 8700),
    ("ray-head", "ray-head", 8700),
    ("ray-worker", "ray-head", 8700),
    ("ray-head", "ray-worker", 5432),
    ("ray-worker", "ray-worker", 5432),
    ("ray-head", "ray-head", 5432),
    ("ray-worker", "ray-head", 5432),
    ("ray-worker", "ray-worker", 6379),
    ("ray-worker", "ray-worker", 8080),
    ("ray-worker", "ray-worker", 10002),
    ("ray-head", "internet", 443),
    ("ray-worker", "internet", 443),
    ("prometheus", "control-plane", 8700),
    ("prometheus", "ray-head", 8080),
    ("prometheus", "ray-worker", 8080),
}
"""All of it, for the built-in database and a fixed cluster. Ray's nodes use any port but the dashboard's."""

PORTS = (443, 5432, 6379, 8080, 8265, 8700, 10002)
OURS = ("control-plane", "migration", "postgresql", "ray-head", "ray-worker")


def test_only_what_must_talk_talks(renders: dict[str, list[Manifest]]) -> None:
    found = {
        (source, target, port)
        for source in PEERS
        for target in PEERS
        for port in PORTS
        if (source in OURS or target in OURS) and source != "neighbour"
        if allowed(renders["kind-cpu"], source, target, port)
    }
    # Pods outside the release receive what their own side allows. No pod of the release is open to them.
    assert found == MAY_TALK


@pytest.mark.parametrize("name", [name for name in MATRIX if name != "bare"])
def test_the_dashboard_is_the_control_planes_alone(renders: dict[str, list[Manifest]], name: str) -> None:
    reaching = {source for source in PEERS if allowed(renders[name], source, "ray-head", 8265)}
    assert reaching == {"control-plane"}


def test_every_pod_may_ask_for_names_and_no_pod_reaches_the_metadata_service(
    renders: dict[str, list[Manifest]],
) -> None:
    for source in ("control-plane", "migration", "ray-head", "ray-worker"):
        assert allowed(renders["defaults"], source, "dns", 53, "UDP")
        assert not any(allowed(renders["defaults"], source, "metadata", port) for port in (80, 443))
    assert not allowed(renders["kind-cpu"], "postgresql", "dns", 53, "UDP")


def test_options_open_what_they_need(renders: dict[str, list[Manifest]]) -> None:
    assert allowed(renders["defaults"], "control-plane", "internet", 5432)
    assert allowed(renders["defaults"], "migration", "internet", 5432)
    assert not allowed(renders["kind-cpu"], "ray-head", "internet", 6443)
    assert allowed(renders["defaults"], "ray-head", "internet", 6443)
    assert not allowed(renders["defaults"], "ray-worker", "internet", 6443)
    assert allowed(renders["large-cluster"], "ray-head", "stranger", 6379)
    assert not allowed(renders["defaults"], "ray-head", "stranger", 6379)


def test_only_traced_pods_reach_the_collector(render: Render) -> None:
    endpoint = "http://otel-collector.monitoring.svc:4318"
    off, on = render("kind-cpu"), render("kind-cpu", [f"monitoring.tracing.endpoint={endpoint}"])
    senders = {source for source in OURS if allowed(on, source, "prometheus", 4318)}
    assert senders == {"control-plane", "ray-head", "ray-worker"}
    assert not [source for source in OURS if allowed(off, source, "prometheus", 4318)]
    assert [_tracing_of(manifests) for manifests in (off, on)] == [[], [endpoint]]


def _tracing_of(manifests: list[Manifest]) -> list[str]:
    (deployment,) = [each for each in manifests if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return [each["value"] for each in container["env"] if each["name"] == "TIDE_TRACING_ENDPOINT"]

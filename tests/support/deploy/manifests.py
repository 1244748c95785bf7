"""Reading manifests: the pods in them, wherever they are nested."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]

MATRIX: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "defaults": (None, ()),
    "kind-cpu": ("kind-cpu", ()),
    "single-node-8-gpu": ("single-node-8-gpu", ()),
    "large-cluster": ("large-cluster", ()),
    "outside": (
        "large-cluster",
        (
            "ingress.enabled=true",
            "ingress.className=nginx",
            "ingress.tlsSecretName=tide-tls",
            "networkPolicy.clients[0].namespaceSelector.matchLabels.purpose=ingress",
            "images.controlPlane.digest=sha256:" + "0" * 64,
            "images.pullSecrets[0]=registry",
        ),
    ),
    "gateway": (
        None,
        (
            "httpRoute.enabled=true",
            "httpRoute.parentRefs[0].name=gateway",
            "networkPolicy.clients[0].namespaceSelector.matchLabels.purpose=gateway",
        ),
    ),
    "bare": (
        "kind-cpu",
        (
            "networkPolicy.enabled=false",
            "migration.enabled=false",
            "ray.tokenAuthentication.enabled=false",
            "authentication.enabled=false",
            "fullnameOverride=short",
        ),
    ),
    "generated-token": (None, ("authentication.bootstrapToken.generate=true",)),
    "own-secrets": (
        None,
        (
            "ray.tokenAuthentication.secretName=ray-token",
            "authentication.bootstrapToken.secretName=first-token",
            "authentication.bootstrapToken.key=editor",
            "storage.claim.existingName=shared",
            "modelCache.existingName=models",
            "controlPlane.serviceAccountAnnotations.role=tide",
            "kueue.queueName=team",
        ),
    ),
}
"""Name -> (profile, values): the renders that every check runs over."""


def pod_specs(manifest: Manifest) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """(name, labels, spec) of every pod that a manifest leads to."""
    name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
    templates = []
    if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
        templates = [(name, spec["template"])]
    elif manifest["kind"] == "RayCluster":
        templates = [(f"{name}-head", spec["headGroupSpec"]["template"])]
        templates += [(f"{name}-{each['groupName']}", each["template"]) for each in spec["workerGroupSpecs"]]
    for pod, template in templates:
        yield pod, template["metadata"]["labels"], template["spec"]


def one(manifests: list[Manifest], kind: str, suffix: str = "") -> Manifest:
    """The one manifest of a kind whose name ends so."""
    found = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, [each["metadata"]["name"] for each in found]
    return found[0]

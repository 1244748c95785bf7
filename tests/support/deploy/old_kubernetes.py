"""What a server of Kubernetes 1.20 cannot take, and what it is given instead.

Debian's source package holds the newest API server that can be built from a package registry. It is older
than what the chart asks for, and the chart is not bent for it: its manifests and KubeRay's definitions are
changed on the way, here and nowhere else. Run as a program this is a post-renderer: manifests in, manifests
out.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

PREDECESSORS = {"policy/v1": "policy/v1beta1", "autoscaling/v2": "autoscaling/v2beta2"}
"""API versions that came after 1.20 -> the ones with the same fields, as far as the chart uses them."""
MISSING = ("gateway.networking.k8s.io/v1",)
"""Definitions that are missing: such objects are left out."""


def definition(path: Path) -> Manifest:
    """A CustomResourceDefinition from a file, in what 1.20 understands of it."""
    text = path.read_text()
    made: Manifest = _without_empty_defaults(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return made


def adapted(manifest: Manifest) -> Manifest | None:
    """A manifest for 1.20; None where there is no such kind."""
    if manifest["apiVersion"] in MISSING:
        return None
    made = copy.deepcopy(manifest)
    made["apiVersion"] = PREDECESSORS.get(manifest["apiVersion"], manifest["apiVersion"])
    if made["kind"] == "NetworkPolicy":
        for rule in (*made["spec"].get("ingress", ()), *made["spec"].get("egress", ())):
            for port in rule.get("ports", ()):
                port.pop("endPort", None)  # ranges of ports came with 1.21
    if made["kind"] == "Service":
        for port in made["spec"]["ports"]:
            port.setdefault("protocol", "TCP")  # the default of every version, which 1.20 forgets in an apply
    return made


def _without_empty_defaults(schema: Any) -> Any:
    """1.20 takes a default of "" for null, which is no string; a list's key must have one or be given."""
    if isinstance(schema, list):
        return [_without_empty_defaults(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: _without_empty_defaults(value)
        for name, value in schema.items()
        if not (name == "default" and value == "")
    }
    if keys := made.get("x-kubernetes-list-map-keys"):
        items = made["items"]
        bare = {key for key in keys if "default" not in items["properties"][key]}
        items["required"] = sorted(bare.union(items.get("required", ())))
    return made


if __name__ == "__main__":
    documents = (each for each in yaml.safe_load_all(sys.stdin) if each)
    yaml.safe_dump_all([made for each in documents if (made := adapted(each)) is not None], sys.stdout)

"""The containers that KubeRay makes of a RayCluster: commands, environment and health check.

Written after KubeRay's `ray-operator/controllers/ray/common/pod.go` (`BuildPod`, `setMissingRayStartParams`,
`generateRayStartCommand`, `convertParamMap`, `setContainerEnvVars`, `SetContainerTokenAuthEnvVars`,
`initLivenessAndReadinessProbe`), as far as our chart uses it. In short: KubeRay adds `block`, the dashboard's
address, the metrics and agent ports and, for workers, the head's address to `rayStartParams`; takes CPUs,
memory and GPUs from the container's limits; writes all of it in order of the alphabet behind `ray start`, and
gives that to `/bin/bash -c --`.
"""

from __future__ import annotations

import copy
import math
from decimal import Decimal
from typing import Any

Manifest = dict[str, Any]
Container = dict[str, Any]

HEAD_PORT = "6379"
AGENT_PORT = 52365
HEALTH_PATH = "/api/healthz"
"""Since Ray 2.53 one address answers for the raylet and, on the head, for its GCS."""
_SHELL = ["/bin/bash", "-c", "--"]
_TAKES_A_WORD = ("log-color", "include-dashboard")
"""Options whose true and false are written out."""
_UNITS = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40
}  # fmt: skip


def quantity(text: str | int) -> int:
    """A Kubernetes quantity as a whole number, rounded up as Kubernetes does."""
    digits = str(text).rstrip("".join(_UNITS))
    return math.ceil(Decimal(digits) * _UNITS[str(text)[len(digits) :]])


def head_service(cluster: Manifest) -> str:
    """The full name under which workers find the head."""
    metadata = cluster["metadata"]
    return f"{metadata['name']}-head-svc.{metadata['namespace']}.svc.cluster.local"


def head_container(cluster: Manifest, pod_name: str) -> Container:
    """The head's Ray container as KubeRay starts it."""
    group = cluster["spec"]["headGroupSpec"]
    given = {"dashboard-host": "0.0.0.0"} | group["rayStartParams"]
    if cluster["spec"].get("enableInTreeAutoscaling"):
        given["no-monitor"] = "true"  # the autoscaler is a container of its own
    container = _started(group["template"], "ray start --head", given)
    container["env"] += _environment(cluster, pod_name, "headgroup", f"127.0.0.1:{HEAD_PORT}")
    return container


def worker_container(cluster: Manifest, group_name: str, pod_name: str) -> Container:
    """The Ray container of a worker of one group as KubeRay starts it."""
    (group,) = [each for each in cluster["spec"]["workerGroupSpecs"] if each["groupName"] == group_name]
    address = f"{head_service(cluster)}:{HEAD_PORT}"
    container = _started(group["template"], "ray start", {"address": address} | group["rayStartParams"])
    container["env"] += _environment(cluster, pod_name, group_name, address)
    container["env"] += _values(FQ_RAY_IP=head_service(cluster), RAY_IP=head_service(cluster).split(".")[0])
    return container


def wait_command(cluster: Manifest) -> list[str]:
    """What the init container of a worker repeats until it succeeds."""
    return ["ray", "health-check", "--address", f"{head_service(cluster)}:{HEAD_PORT}"]


def _started(template: Manifest, program: str, given: dict[str, str]) -> Container:
    container: Container = copy.deepcopy(template["spec"]["containers"][0])
    assert not container.get("command"), "KubeRay would put this before `ray start`"
    limits = container["resources"]["limits"]
    derived = {"num-cpus": str(quantity(limits["cpu"])), "memory": str(quantity(limits["memory"]))}
    gpus = [value for name, value in limits.items() if name.endswith("gpu")]
    derived |= {"num-gpus": str(gpus[0])} if gpus else {}
    fixed = {"metrics-export-port": "8080", "dashboard-agent-listen-port": str(AGENT_PORT)}
    parameters = fixed | derived | given | {"block": "true"}
    command = f"{program} {_flags(parameters)}"
    container["command"], container["args"] = (
        _SHELL,
        [f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"],
    )
    container["env"] += _values(KUBERAY_GEN_RAY_START_CMD=command)
    return container


def _flags(parameters: dict[str, str]) -> str:
    flags = []
    for name, value in sorted(parameters.items()):
        if value.lower() in ("true", "false") and name not in _TAKES_A_WORD:
            flags += [f" --{name} "] if value.lower() == "true" else []
        else:
            flags.append(f" --{name}={value} ")
    return "".join(flags)


def _environment(cluster: Manifest, pod_name: str, group: str, address: str) -> list[dict[str, Any]]:
    variables = _values(
        RAY_CLUSTER_NAME=cluster["metadata"]["name"],
        RAY_CLUSTER_NAMESPACE=cluster["metadata"]["namespace"],
        RAY_CLOUD_INSTANCE_ID=pod_name,
        RAY_NODE_TYPE_NAME=group,
        RAY_PORT=HEAD_PORT,
        RAY_ADDRESS=address,
        RAY_USAGE_STATS_KUBERAY_IN_USE="1",
        RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE="1",
    )
    options = cluster["spec"]["authOptions"]
    if options["mode"] == "token":
        secret = options.get("secretName", cluster["metadata"]["name"])
        reference = {"secretKeyRef": {"name": secret, "key": "auth_token"}}
        variables += [*_values(RAY_AUTH_MODE="token"), {"name": "RAY_AUTH_TOKEN", "valueFrom": reference}]
    return variables


def _values(**variables: str) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in variables.items()]

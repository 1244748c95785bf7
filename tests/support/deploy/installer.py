"""The real Helm client against a server of Kubernetes 1.20, with a chart for newer ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.deploy.api_server import ApiServer, Manifest
from tests.support.running_tide import await_true

CHART = Path(__file__).parents[3] / "helm" / "tide"
_RENDERER = "old-kubernetes"
_SECRETS = {"tide-database": {"url": "postgresql+asyncpg://tide:p@tide-postgresql/tide", "password": "p"}}
_COLLECTIONS = (
    *(f"/api/v1/namespaces/{{}}/{each}" for each in ("services", "serviceaccounts", "configmaps", "pods")),
    *(f"/api/v1/namespaces/{{}}/{each}" for each in ("secrets", "persistentvolumeclaims")),
    *(f"/apis/apps/v1/namespaces/{{}}/{each}" for each in ("deployments", "replicasets", "statefulsets")),
    *(
        f"/apis/monitoring.coreos.com/v1/namespaces/{{}}/{each}"
        for each in ("servicemonitors", "podmonitors", "prometheusrules")
    ),
    "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets",
    "/apis/autoscaling/v2beta2/namespaces/{}/horizontalpodautoscalers",
    "/apis/batch/v1/namespaces/{}/jobs",
    "/apis/ray.io/v1/namespaces/{}/rayclusters",
)
"""Whatever the chart may make, and what the controllers make of it."""


class Installer:
    """`helm`, with what `old_kubernetes` does put between the chart and the server.

    Args:
        program: path of helm.
        kubeconfig: whose cluster and credentials.
        folder: an empty one, for its plugin and caches.
    """

    def __init__(self, program: Path, kubeconfig: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        plugin = folder / "plugins" / _RENDERER
        plugin.mkdir(parents=True)
        command = {"command": sys.executable, "args": [str(Path(__file__).with_name("old_kubernetes.py"))]}
        described = {
            "apiVersion": "v1",
            "type": "postrenderer/v1",
            "name": _RENDERER,
            "version": "0.1.0",
            "runtime": "subprocess",
            "runtimeConfig": {"platformCommand": [command]},
        }
        (plugin / "plugin.yaml").write_text(yaml.safe_dump(described))
        places = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "KUBECONFIG": str(kubeconfig),
            "HELM_PLUGINS": str(plugin.parent),
        } | places

    def chart(self, version: str, **replaced: str) -> Path:
        """A copy of the chart as another version, without its demand for a newer Kubernetes.

        Args:
            version: of the chart and of the application.
            replaced: text in the Deployment's template -> what stands there instead.
        """
        copy = self._folder / f"chart-{version}"
        shutil.copytree(CHART, copy)
        about = yaml.safe_load((copy / "Chart.yaml").read_text())
        del about["kubeVersion"]
        about |= {"version": version, "appVersion": version}
        (copy / "Chart.yaml").write_text(yaml.safe_dump(about))
        template = copy / "templates" / "control-plane" / "deployment.yaml"
        for old, new in replaced.items():
            assert old in template.read_text()
            template.write_text(template.read_text().replace(old, new))
        return copy

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run helm; the result has its output and status."""
        command = [str(self._program), *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=240)

    def put(self, verb: str, namespace: str, chart: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        """`helm install` or `upgrade` of the release "tide", waiting until all of it is ready."""
        fixed = ("--namespace", namespace, "--post-renderer", _RENDERER, "--wait", "--timeout", "120s")
        return self(verb, "tide", str(chart), *fixed, *flags)


def make_namespace(server: ApiServer, name: str) -> None:
    """A namespace with the secrets that the chart reads, once its default account is there."""
    server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for secret, values in _SECRETS.items():
        metadata = {"name": secret, "namespace": name}
        server.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})
    await_true(lambda: server.list(f"/api/v1/namespaces/{name}/serviceaccounts"), "the default account", 30)


def objects(server: ApiServer, namespace: str) -> dict[str, Manifest]:
    """ "plural/name" -> object: all in a namespace but what any has, and the releases that Helm stores."""
    found = {}
    for path in _COLLECTIONS:
        for each in server.list(path.format(namespace)):
            name = each["metadata"]["name"]
            is_of_any = name in ("default", "kube-root-ca.crt", *_SECRETS) or each.get("type", "").startswith(
                ("kubernetes.io/service-account-token", "helm.sh/release")
            )
            if not is_of_any:
                found[f"{path.rpartition('/')[2]}/{name}"] = each
    return found

"""A Kubernetes control plane on this machine, for the chart to be installed on.

etcd, kube-apiserver (RBAC on) and kube-controller-manager run for real, on loopback, from what
`deploy/kubernetes/build.sh` built. There is no node, no scheduler and no KubeRay: `Nodes` says of each pod
what a node would say.
"""

from __future__ import annotations

import secrets
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.running_prometheus import find_free_port
from tests.support.running_tide import await_true

Manifest = dict[str, Any]

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
PLURALS = {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies", "StorageClass": "storageclasses"}
APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class RefusedError(AssertionError):
    """The server's answer was an error; its status and reason are the message."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"{answer.status_code} {answer.request.method} {answer.request.url}: {answer.text}")
        self.code = answer.status_code


class ApiServer:
    """The control plane of a cluster, empty at first.

    Args:
        programs: folder with the three programs.
        folder: an empty one, for keys, data and logs.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = find_free_port()
        self._token = secrets.token_hex(16)
        self._client: httpx.Client | None = None
        self.kubeconfig = folder / "kubeconfig"

    @property
    def url(self) -> str:
        """Of the server."""
        return f"https://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Bring all three up; the administrator's credentials are then in `kubeconfig`."""
        etcd, peer = (f"http://127.0.0.1:{find_free_port()}" for _ in range(2))
        self._run(
            "etcd", f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}", "--unsafe-no-fsync", "--log-level=warn",
        )  # fmt: skip
        key = self._write_key()
        tokens = self._folder / "tokens.csv"
        tokens.write_text(f'{self._token},administrator,administrator,"system:masters"\n')
        self._run(
            "kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
            f"--secure-port={self._port}", f"--cert-dir={self._folder / 'certificates'}",
            "--authorization-mode=RBAC", f"--token-auth-file={tokens}", "--anonymous-auth=false",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            f"--service-account-issuer={self.url}", "--service-cluster-ip-range=10.0.0.0/24",
        )  # fmt: skip
        authority = self._folder / "certificates" / "apiserver.crt"
        await_true(authority.exists, "the server has a certificate", 30)
        self._client = httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=str(authority)),
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=30,
        )
        self._write_kubeconfig(authority)
        await_true(self._is_ready, "the API server is ready", 60)
        self._run(
            "kube-controller-manager", f"--kubeconfig={self.kubeconfig}", "--leader-elect=false",
            f"--service-account-private-key-file={key}", f"--root-ca-file={authority}", "--port=0",
            f"--secure-port={find_free_port()}", "--bind-address=127.0.0.1",
            f"--cert-dir={self._folder / 'manager'}", "--pvclaimbinder-sync-period=1s",
        )  # fmt: skip

    def close(self) -> None:
        """End the processes, the server last but one."""
        if self._client is not None:
            self._client.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def ask(self, method: str, path: str, **options: Any) -> Manifest:
        """One request as the administrator, or as whom `headers` name.

        Raises:
            RefusedError: the server answered with an error.
        """
        assert self._client is not None, "the server is not started"
        answer = self._client.request(method, path, **options)
        if answer.is_error:
            raise RefusedError(answer)
        found: Manifest = answer.json()
        return found

    def list(self, path: str) -> list[Manifest]:
        """The objects of a collection."""
        items: list[Manifest] = self.ask("GET", path)["items"]
        return items

    def create(self, manifest: Manifest, **params: str) -> Manifest:
        """Post an object into its collection."""
        return self.ask("POST", collection(manifest), json=manifest, params=params)

    def define(self, definition: Manifest) -> None:
        """Make a CustomResourceDefinition and wait until its kind is served."""
        self.create(definition)
        path = f"{collection(definition)}/{definition['metadata']['name']}"

        def is_served() -> bool:
            conditions = self.ask("GET", path).get("status", {}).get("conditions") or ()
            return ("Established", "True") in {(each["type"], each["status"]) for each in conditions}

        await_true(is_served, f"{definition['metadata']['name']} is served", 60)

    def apply(self, manifest: Manifest, **params: str) -> Manifest:
        """Server-side apply, which refuses what the kind's schema does not know."""
        path = f"{collection(manifest)}/{manifest['metadata']['name']}"
        options = {"content": yaml.safe_dump(manifest), "headers": {"Content-Type": APPLY}}
        return self.ask("PATCH", path, params={"fieldManager": "test"} | params, **options)

    def patch(self, path: str, change: Any, kind: str = _MERGE) -> Manifest:
        """Change an object or a part of it, such as its status."""
        return self.ask("PATCH", path, json=change, headers={"Content-Type": kind})

    def _is_ready(self) -> bool:
        assert self._processes[-1].poll() is None, (self._folder / "kube-apiserver.log").read_text()[-2000:]
        try:
            return bool(self.list("/api/v1/namespaces"))
        except (httpx.HTTPError, RefusedError):
            return False

    def _run(self, program: str, *flags: str) -> None:
        with (self._folder / f"{program}.log").open("wb") as log:
            command = ["setpriv", "--pdeathsig", "KILL", str(self._programs / program), *flags]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _write_key(self) -> Path:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        path = self._folder / "service-accounts.key"
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        path.write_bytes(private.private_bytes(encoding, form, serialization.NoEncryption()))
        return path

    def _write_kubeconfig(self, authority: Path) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "here", "cluster": {"server": self.url, "certificate-authority": str(authority)}}
            ],
            "users": [{"name": "administrator", "user": {"token": self._token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "administrator"}}],
            "current-context": "here",
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))
        self.kubeconfig.chmod(0o600)  # helm warns otherwise


def collection(manifest: Manifest) -> str:
    """Path of the collection that an object of this kind and namespace is in."""
    group, kind = manifest["apiVersion"], manifest["kind"]
    root = f"/apis/{group}" if "/" in group else f"/api/{group}"
    namespace = manifest["metadata"].get("namespace")
    plural = PLURALS.get(kind, f"{kind.lower()}s")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


class Nodes:
    """Says of each pod what a node's kubelet would: a Job's has succeeded, any other runs and is ready.

    A thread, until it is closed. Claims are bound by the real controller to the volumes that `offer` makes.
    """

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def offer(self, count: int) -> None:
        """Volumes of any size for whichever claim comes, in a class that is the default."""
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        self._server.create(
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": "offered", "annotations": default},
                "provisioner": "kubernetes.io/no-provisioner",
                "volumeBindingMode": "Immediate",
            }
        )
        for number in range(count):
            spec = {
                "capacity": {"storage": "100Ti"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "hostPath": {"path": f"/offered/{number}"},
                "storageClassName": "offered",
            }
            metadata = {"name": f"offered-{number}"}
            self._server.create(
                {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec}
            )

    def close(self) -> None:
        """Say nothing more."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(0.2):
            for pod in self._server.list("/api/v1/pods"):
                if pod["status"]["phase"] == "Pending":
                    self._answer_for(pod)

    def _answer_for(self, pod: Manifest) -> None:
        owners = {each["kind"] for each in pod["metadata"].get("ownerReferences", ())}
        status: Manifest = {"phase": "Succeeded"}
        if "Job" not in owners:
            ready = {"type": "Ready", "status": "True"}
            status = {"phase": "Running", "conditions": [ready]}
        path = f"{collection({'apiVersion': 'v1', 'kind': 'Pod'} | pod)}/{pod['metadata']['name']}/status"
        try:
            self._server.patch(path, {"status": status})
        except RefusedError as answer:
            if answer.code != 404:  # it was deleted meanwhile
                raise

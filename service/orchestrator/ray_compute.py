"""Ray by its Jobs and Serve REST interfaces: the only module that knows them. Needs no Ray installation.

In: submissions and applications as `Compute` describes them. Out: HTTP calls to Ray, and states read from its
answers.

Verified against Ray 2.60. Submission ids make submitting idempotent: a second one with the same id is refused
with "already exists", which is what was wanted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from service.orchestrator.compute import (
    Application,
    ApplicationState,
    ApplicationStatus,
    ClusterResources,
    ComputeRefusedError,
    Scaling,
    Submission,
    SubmissionState,
    SubmissionStatus,
)
from tide_core.contracts.errors import ComputeUnavailableError
from tide_core.contracts.serving import is_ours

_JOBS = "/api/jobs/"
_APPLICATIONS = "/api/serve/applications/"
_TIMEOUT = httpx.Timeout(30.0, connect=3.0)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MIB = 1 << 20
_MEASURE_SECONDS = 2.0
"""How often a replica measures its load and tells it."""
_LOOK_BACK_SECONDS = 10.0
"""The load that counts is the mean over this time."""

_STATUSES = {
    "DEPLOYING": ApplicationStatus.STARTING,
    "NOT_STARTED": ApplicationStatus.STARTING,
    "RUNNING": ApplicationStatus.RUNNING,
    "UNHEALTHY": ApplicationStatus.UNHEALTHY,
    "DEPLOY_FAILED": ApplicationStatus.FAILED,
    "DELETING": ApplicationStatus.DELETING,
}


class RayCompute:
    """Implements `Compute` over the dashboard of a Ray head.

    Args:
        address: URL of the dashboard, such as ``http://127.0.0.1:8265``.
        token: bearer token, where Ray's token authentication is on.
        transport: for tests, instead of the network.
    """

    def __init__(
        self, address: str, token: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # A cluster is reached directly: a proxy of the environment is for the internet.
        self._client = httpx.AsyncClient(
            base_url=address, headers=headers, timeout=_TIMEOUT, trust_env=False, transport=transport
        )
        self._address = address

    async def ping(self) -> None:
        """Ask for the version: answered by the dashboard itself."""
        await self._request("GET", "/api/version")

    async def submit(self, submission: Submission) -> None:
        """POST a job; a known id is what was wanted."""
        body = {
            "submission_id": submission.submission_id,
            "entrypoint": submission.entrypoint,
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": dict(submission.environment)},
            "metadata": dict(submission.labels),
        }
        answer = await self._request("POST", _JOBS, json=body, accept=(400, 500))
        if answer.is_success or "already exists" in answer.text:
            return
        if answer.status_code == 400:
            raise ComputeRefusedError(f"Ray refuses {submission.submission_id}: {_last_line(answer.text)}")
        raise ComputeUnavailableError(
            f"Ray could not take {submission.submission_id}: {_last_line(answer.text)}"
        )

    async def status(self, submission_id: str) -> SubmissionState:
        """GET one job."""
        answer = await self._request("GET", _job_path(submission_id), accept=(404,))
        if answer.status_code == 404:
            return SubmissionState(SubmissionStatus.NOT_FOUND)
        details = answer.json()
        return SubmissionState(
            SubmissionStatus(details["status"].lower()),
            _plain(details.get("message") or ""),
            details.get("driver_exit_code"),
        )

    async def stop(self, submission_id: str) -> None:
        """POST a stop; unknown and ended ones are fine."""
        await self._request("POST", f"{_job_path(submission_id)}/stop", accept=(404,))

    async def logs(self, submission_id: str) -> str:
        """GET a job's output."""
        answer = await self._request("GET", f"{_job_path(submission_id)}/logs", accept=(404,))
        return "" if answer.status_code == 404 else _plain(answer.json().get("logs") or "")

    async def put_applications(self, applications: Sequence[Application]) -> None:
        """PUT the whole set: ours as wanted, foreign ones as they were deployed."""
        known = await self._application_details()
        foreign = [
            details["deployed_app_config"]
            for name, details in known.items()
            if not is_ours(name) and details.get("deployed_app_config")
        ]
        body = {
            "proxy_location": "Disabled",
            "applications": foreign + [serve_config(application) for application in applications],
        }
        await self._request("PUT", _APPLICATIONS, json=body)

    async def applications(self) -> dict[str, ApplicationState]:
        """GET all applications, ours only."""
        known = await self._application_details()
        return {name: _to_state(details) for name, details in known.items() if is_ours(name)}

    async def resources(self) -> ClusterResources:
        """GET the summary of all nodes; dead ones do not count."""
        answer = await self._request("GET", "/nodes", params={"view": "summary"})
        alive = [
            node
            for node in answer.json()["data"]["summary"]
            if node.get("raylet", {}).get("state", "ALIVE") == "ALIVE"
        ]
        totals = [node.get("raylet", {}).get("resourcesTotal", {}) for node in alive]
        gpus = [gpu for node in alive for gpu in node.get("gpus") or []]
        return ClusterResources(
            nodes=len(alive),
            cpus=sum(total.get("CPU", 0.0) for total in totals),
            gpus=sum(total.get("GPU", 0.0) for total in totals),
            largest_node_memory=max((int(node["mem"][0]) for node in alive if node.get("mem")), default=0),
            largest_gpu_memory=max((int(gpu.get("memoryTotal") or 0) * _MIB for gpu in gpus), default=0),
            labels=tuple(node.get("raylet", {}).get("labels") or {} for node in alive),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _application_details(self) -> dict[str, Any]:
        answer = await self._request("GET", _APPLICATIONS)
        applications: dict[str, Any] = answer.json()["applications"]
        return applications

    async def _request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (),
    ) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, json=json, params=params)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ComputeUnavailableError(f"Ray at {self._address} does not answer: {reason}") from error
        if answer.is_success or answer.status_code in accept:
            return answer
        if answer.status_code in (401, 403):
            raise ComputeUnavailableError(
                f"Ray at {self._address} refuses our token; set TIDE_RAY_AUTH_TOKEN to the cluster's.",
                code="compute_unauthorized",
            )
        if answer.status_code >= 500:
            raise ComputeUnavailableError(
                f"Ray at {self._address} answers {answer.status_code}: {_last_line(answer.text)}"
            )
        raise ComputeRefusedError(f"Ray refuses {method} {path}: {_last_line(answer.text)}")


def _job_path(submission_id: str) -> str:
    return f"{_JOBS}{quote(submission_id, safe='')}"


def serve_config(application: Application) -> dict[str, Any]:
    """An application as Ray Serve's REST interface takes it (an entry of ``applications``)."""
    # Size and place are overrides of the deployment: changing the size keeps the replicas that run, whereas
    # changing `args` would replace them all.
    options: dict[str, Any] = {
        "num_cpus": application.cpus_per_replica,
        "num_gpus": application.gpus_per_replica,
    }
    if application.node_labels:
        options["label_selector"] = dict(application.node_labels)
    return {
        "name": application.name,
        "import_path": application.import_path,
        "route_prefix": None,
        "args": dict(application.arguments),
        "runtime_env": {"env_vars": dict(application.environment)},
        "deployments": [
            {
                "name": application.deployment,
                "num_replicas": "auto",
                "autoscaling_config": _to_autoscaling(application.scaling),
                "ray_actor_options": options,
            }
        ],
    }


def _to_autoscaling(scaling: Scaling) -> dict[str, Any]:
    # Also for a fixed number: a replica that starts without this never measures, so that a pool could not be
    # given room later without replacing its replicas.
    return {
        "min_replicas": scaling.minimum,
        "max_replicas": scaling.maximum,
        "metrics_interval_s": _MEASURE_SECONDS,
        "look_back_period_s": _LOOK_BACK_SECONDS,
        "upscale_delay_s": scaling.up_after_seconds,
        "downscale_delay_s": scaling.down_after_seconds,
        "policy": {"policy_function": scaling.policy, "policy_kwargs": dict(scaling.arguments)},
    }


def _from_config(config: Mapping[str, Any]) -> Application | None:
    try:
        (deployment,) = config["deployments"]
        options, scaling = deployment["ray_actor_options"], deployment["autoscaling_config"]
        return Application(
            name=config["name"],
            import_path=config["import_path"],
            arguments=config.get("args") or {},
            deployment=deployment["name"],
            scaling=Scaling(
                minimum=scaling["min_replicas"],
                maximum=scaling["max_replicas"],
                policy=scaling["policy"]["policy_function"],
                arguments=scaling["policy"]["policy_kwargs"],
                up_after_seconds=scaling["upscale_delay_s"],
                down_after_seconds=scaling["downscale_delay_s"],
            ),
            cpus_per_replica=options["num_cpus"],
            gpus_per_replica=options["num_gpus"],
            node_labels=options.get("label_selector") or {},
            environment=(config.get("runtime_env") or {}).get("env_vars") or {},
        )
    except (KeyError, TypeError, ValueError):
        return None  # deployed by another program or an older Tide: the next put replaces it


def _to_state(details: Mapping[str, Any]) -> ApplicationState:
    deployments = list((details.get("deployments") or {}).values())
    replicas = [replica for deployment in deployments for replica in deployment.get("replicas") or []]
    messages = [deployment.get("message") for deployment in deployments] + [details.get("message")]
    message = next((_plain(text) for text in messages if text), "")
    return ApplicationState(
        status=_STATUSES.get(details["status"], ApplicationStatus.STARTING),
        message=_cause(message),
        ready_replicas=sum(replica.get("state") == "RUNNING" for replica in replicas),
        wanted=_from_config(details.get("deployed_app_config") or {}),
    )


def _cause(message: str) -> str:
    """The line that names the cause: a replica's traceback ends with it, other messages are short."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if "Traceback" in message or "  File " in message else " ".join(lines)


def _last_line(text: str) -> str:
    """Ray answers errors with tracebacks; what matters stands in their last line that says something."""
    lines = [line.strip() for line in _plain(text).splitlines() if len(line.strip()) > 1]
    return lines[-1] if lines else "no explanation"


def _plain(text: str) -> str:
    return _ANSI.sub("", text)

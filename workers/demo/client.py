"""The demo's way to the service: plain HTTP, like any other client."""

from __future__ import annotations

from typing import Any, Self

import httpx

from tide_core.contracts.errors import NotFoundError, TideError
from tide_core.contracts.job import JobSpec

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class ServiceError(TideError):
    """The service refused a request or cannot be reached."""

    code = "service_error"


class DemoClient:
    """A few calls of the REST interface.

    Args:
        url: address of the control plane.
        transport: another way to send requests, for tests.

    Raises (by every method):
        ServiceError: the service refused (its own message is passed on) or cannot be reached.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=30.0, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the service answers that it is ready."""
        try:
            return self._http.get("/readyz", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def submit(self, spec: JobSpec) -> dict[str, Any]:
        """Post a job; gives the job as the service shows it."""
        return self._call("POST", "/v1/jobs", json=spec.model_dump(mode="json"))

    def job(self, job_id: str) -> dict[str, Any]:
        """One job as it stands."""
        return self._call("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> None:
        """Ask for a job's end; a job that has ended already is left alone."""
        try:
            self._call("POST", f"/v1/jobs/{job_id}/cancel")
        except ServiceError:
            if self.job(job_id)["status"] not in ENDED:
                raise

    def series(self, job_id: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one figure of a job, thinned to what a line of text can use."""
        shown = self._call("GET", f"/v1/jobs/{job_id}/metrics", params={"name": name, "max_points": "200"})
        for entry in shown["data"]:
            return entry["steps"], entry["values"]
        return [], []

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"The service at {self.url} cannot be reached ({error}). Is `tide up` still running?"
            ) from error
        if response.status_code == 404:
            raise NotFoundError(_message(response))
        if response.is_error:
            raise ServiceError(_message(response))
        body: dict[str, Any] = response.json()
        return body


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return f"{error['message']} ({error['code']})"
    except (ValueError, KeyError, TypeError):
        return f"The service answered {response.status_code}: {response.text[:200]}"

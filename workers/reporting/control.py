"""The two calls that a worker makes to the control plane, with their failures sorted.

Source of the messages: `tide_core.contracts.reporting`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping

import httpx

from tide_core.contracts.errors import InvalidInputError, TideError
from tide_core.contracts.reporting import (
    ENV_ATTEMPT_TOKEN,
    ENV_CONTROL_URL,
    AttemptBrief,
    ReportBatch,
    ReportReceipt,
)

FENCED_STATUSES = frozenset({401, 403, 404, 409, 410})
RETRIED_STATUSES = frozenset({408, 425, 429})


class ControlUnreachableError(TideError):
    """The control plane did not answer, or answered that it is busy: try again later."""

    code = "control_unreachable"


class AttemptFencedError(TideError):
    """This attempt is over for the control plane: stop, and change nothing any more."""

    code = "attempt_fenced"


class ReportRefusedError(TideError):
    """The control plane understood the reports and does not want them."""

    code = "report_refused"


class ControlPlane:
    """HTTP client of the internal interface, authorised by the token of one attempt and phase."""

    def __init__(
        self, url: str, token: str, *, timeout: float = 10.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout,
            transport=transport,
            trust_env=False,
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ControlPlane:
        """The control plane that this Ray job was started for.

        Raises:
            InvalidInputError: when the environment does not name it.
        """
        missing = [name for name in (ENV_CONTROL_URL, ENV_ATTEMPT_TOKEN) if not environment.get(name)]
        if missing:
            raise InvalidInputError(
                f"The environment lacks {', '.join(missing)}: this program is started by the control plane "
                "as a Ray job, not by hand.",
                code="not_a_ray_job",
                param=missing[0],
            )
        return cls(environment[ENV_CONTROL_URL], environment[ENV_ATTEMPT_TOKEN])

    def fetch_brief(
        self, *, deadline_seconds: float = 600.0, sleep: Callable[[float], None] = time.sleep
    ) -> AttemptBrief:
        """What this attempt is to do; waits for a control plane that is restarting.

        Raises:
            ControlUnreachableError: when the deadline passes without an answer.
            AttemptFencedError: when the token is not valid any more.
        """
        delays = Backoff()
        give_up = time.monotonic() + deadline_seconds
        while True:
            try:
                return AttemptBrief.model_validate_json(self._request("GET", "/internal/v1/attempt", None))
            except ControlUnreachableError:
                pause = delays.next()
                if time.monotonic() + pause > give_up:
                    raise
                sleep(pause)

    def post(self, batch: ReportBatch) -> ReportReceipt:
        """Deliver reports once (no retry).

        Raises:
            ControlUnreachableError, AttemptFencedError, ReportRefusedError: see the classes.
        """
        body = batch.model_dump_json().encode()
        return ReportReceipt.model_validate_json(self._request("POST", "/internal/v1/reports", body))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _request(self, method: str, path: str, content: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            answer = self._http.request(method, path, content=content, headers=headers)
        except httpx.TransportError as error:
            raise ControlUnreachableError(f"The control plane does not answer: {error}") from error
        if answer.status_code in FENCED_STATUSES:
            raise AttemptFencedError(
                f"The control plane refused this attempt with status {answer.status_code}: "
                f"{answer.text[:300]}"
            )
        if answer.status_code in RETRIED_STATUSES or answer.status_code >= 500:
            raise ControlUnreachableError(f"The control plane answered with status {answer.status_code}.")
        if answer.status_code >= 400:
            raise ReportRefusedError(
                f"The control plane refused a request with status {answer.status_code}: {answer.text[:500]}"
            )
        return answer.content


class Backoff:
    """Pauses that double from `first` to `longest` seconds, each shortened at random by up to a half."""

    def __init__(self, first: float = 0.25, longest: float = 10.0) -> None:
        self._pause = self._first = first
        self._longest = longest

    def next(self) -> float:
        """The pause before the next try."""
        pause, self._pause = self._pause, min(self._longest, self._pause * 2)
        # Not one of the method's draws: only spreads the retries of many workers.
        return pause * (1.0 - 0.5 * random.random())

    def reset(self) -> None:
        """Start over after a success."""
        self._pause = self._first

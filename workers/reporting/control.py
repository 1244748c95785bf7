"""The two calls that a worker makes to the control plane, with their failures sorted.

Source of the messages: `tide_core.contracts.reporting`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import httpx

from tide.errors import ApiError
from tide.transport.call import Call
from tide.transport.connection import Connection
from tide.transport.patience import Patience
from tide.transport.steps import Steps
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
_LONGEST_PAUSE = 10.0
Result = TypeVar("Result")


class ControlUnreachableError(TideError):
    """The control plane did not answer, or answered that it is busy: try again later."""

    code = "control_unreachable"


class AttemptFencedError(TideError):
    """This attempt is over for the control plane: stop, and change nothing any more."""

    code = "attempt_fenced"


class ReportRefusedError(TideError):
    """The control plane understood the reports and does not take them."""

    code = "report_refused"


class ControlPlane:
    """HTTP client of the internal interface, authorised by the token of one attempt and phase."""

    def __init__(
        self, url: str, token: str, *, timeout: float = 10.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._connection = Connection(url, token, timeout=httpx.Timeout(timeout), transport=transport)

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
            AttemptFencedError: the attempt is over already.
            ControlUnreachableError: no answer within the deadline.
        """
        patience = Patience(
            retries=None, seconds=deadline_seconds, longest_pause=_LONGEST_PAUSE, is_passing=_may_pass
        )
        call = Call("GET", "/internal/v1/attempt", _read_brief)
        return self._run(self._connection.steps_of(call, patience), sleep)

    def post(self, batch: ReportBatch) -> ReportReceipt:
        """Deliver reports once (no retry).

        Raises:
            ControlUnreachableError, AttemptFencedError, ReportRefusedError: see the classes.
        """
        content = batch.model_dump_json().encode()
        call = Call("POST", "/internal/v1/reports", _read_receipt, content=content, is_repeatable=False)
        return self._run(self._connection.steps_of(call))

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _run(self, steps: Steps[Result], sleep: Callable[[float], None] = time.sleep) -> Result:
        try:
            return self._connection.run(steps, sleep)
        except ApiError as error:
            raise _sort(error) from error


def _may_pass(error: ApiError) -> bool:
    return error.status is None or error.status in RETRIED_STATUSES or error.status >= 500


def _sort(error: ApiError) -> ControlUnreachableError | AttemptFencedError | ReportRefusedError:
    """What a failed request means for an attempt."""
    if error.status in FENCED_STATUSES:
        return AttemptFencedError(
            f"The control plane refused this attempt with status {error.status}: {error.message[:300]}"
        )
    if error.status is None:
        return ControlUnreachableError(f"The control plane does not answer: {error.__cause__}")
    if _may_pass(error):
        return ControlUnreachableError(f"The control plane answered with status {error.status}.")
    return ReportRefusedError(
        f"The control plane refused a request with status {error.status}: {error.message[:500]}"
    )


def _read_brief(response: httpx.Response) -> AttemptBrief:
    return AttemptBrief.model_validate_json(response.content)


def _read_receipt(response: httpx.Response) -> ReportReceipt:
    return ReportReceipt.model_validate_json(response.content)

"""Answers and failures of HTTP as Tide's errors: the one place that knows which status is which error."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from tide.errors import (
    AccessDeniedError,
    ApiError,
    AuthenticationError,
    InvalidRequestError,
    MissingResourceError,
    RequestConflictError,
    ServerFailedError,
    TooManyRequestsError,
    UnexpectedAnswerError,
    UnreachableError,
)
from tide_core.contracts.resources import ErrorEnvelope

REQUEST_ID_HEADER = "X-Request-Id"
_CLASSES: dict[int, type[ApiError]] = {
    401: AuthenticationError,
    403: AccessDeniedError,
    404: MissingResourceError,
    409: RequestConflictError,
    429: TooManyRequestsError,
}


def error_of(response: httpx.Response) -> ApiError:
    """The error that an answer tells of.

    An answer in another form than Tide's is an `UnexpectedAnswerError`, unless its status alone says that
    the server is busy or away: then a proxy in between may have answered.
    """
    status = response.status_code
    kind = _CLASSES.get(status, ServerFailedError if status >= 500 else InvalidRequestError)
    request_id = response.headers.get(REQUEST_ID_HEADER)
    retry_after = _read_retry_after(response.headers.get("Retry-After"))
    try:
        error = ErrorEnvelope.model_validate_json(response.content).error
    except ValidationError:
        if status not in (429, 502, 503, 504):
            kind = UnexpectedAnswerError
        message = f"The server at {response.url.host} answered {status}, not in Tide's form: is it Tide?"
        return kind(message, status=status, request_id=request_id, retry_after=retry_after)
    return kind(
        error.message,
        code=error.code,
        param=error.param,
        status=status,
        request_id=request_id,
        retry_after=retry_after,
    )


def unreachable_error(url: str, error: Exception) -> UnreachableError:
    """The error for an address where no server answers, or whose connection broke."""
    reason = str(error) or type(error).__name__
    return UnreachableError(
        f"No server answers at {url} ({reason}). Start one with `tide up`, or give its address with --url or "
        "TIDE_URL."
    )


def _read_retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which holds seconds or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())

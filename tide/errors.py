"""What can go wrong between a client and the control plane: one class for each kind.

All descend from `ApiError`, and this from `TideError`: ``code`` and ``param`` are the server's own,
``status`` is the HTTP status, and ``request_id`` finds the request in the server's log.
"""

from __future__ import annotations

from tide_core.contracts.errors import ConflictError, InvalidInputError, NotFoundError, TideError


class ApiError(TideError):
    """A request did not succeed.

    Attributes:
        status: HTTP status of the answer; None when there was no answer.
        request_id: the server's id of the request, when it gave one.
        retry_after: seconds that the server asks to wait, when it does.
    """

    code = "refused"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after


class UnreachableError(ApiError):
    """No server answers at the address, or the connection broke."""

    code = "unreachable"


class UnexpectedAnswerError(ApiError):
    """The answer is not in Tide's form: another program answers, or a much newer server."""

    code = "unexpected_answer"


class AuthenticationError(ApiError):
    """Status 401: the token is missing, unknown, expired or revoked."""

    code = "unauthorized"


class AccessDeniedError(ApiError):
    """Status 403: the token is good, but its role does not allow this."""

    code = "forbidden"


class MissingResourceError(ApiError, NotFoundError):
    """Status 404: there is no such resource."""

    code = "not_found"


class RequestConflictError(ApiError, ConflictError):
    """Status 409: the request contradicts the present state of the resource."""

    code = "conflict"


class InvalidRequestError(ApiError, InvalidInputError):
    """Another status from 400 to 499: the request is wrong; ``param`` names the field."""

    code = "invalid_input"


class TooManyRequestsError(ApiError):
    """Status 429: slow down and try again."""

    code = "too_many_requests"


class ServerFailedError(ApiError):
    """Status 500 or more: the server failed, or something that it needs is away."""

    code = "server_error"


class WaitTimeoutError(TideError, TimeoutError):
    """The job did not end in the time that was given; it goes on."""

    code = "wait_timeout"

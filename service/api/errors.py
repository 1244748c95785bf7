"""The error envelope: every failure of the REST interface has this one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tide_core.contracts.errors import (
    ComputeUnavailableError,
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    TideError,
    UnauthorizedError,
)
from tide_core.contracts.resources import ErrorBody, ErrorEnvelope

log = structlog.get_logger(__name__)


_STATUS: tuple[tuple[type[TideError], int, str], ...] = (
    (UnauthorizedError, 401, "authentication_error"),
    (ForbiddenError, 403, "permission_error"),
    (NotFoundError, 404, "not_found_error"),
    (ConflictError, 409, "conflict_error"),
    (InvalidInputError, 422, "invalid_request_error"),
    (ComputeUnavailableError, 503, "server_error"),
)
_HTTP_CODES = {404: "no_such_route", 405: "method_not_allowed", 413: "body_too_large"}
_KINDS_OF_VALUES = {
    "dict_type": "an object with named fields",
    "model_type": "an object with named fields",
    "model_attributes_type": "an object with named fields",
    "dataclass_type": "an object with named fields",
    "list_type": "a list",
    "tuple_type": "a list",
}
"""What pydantic calls by names of Python, in the words of JSON."""
_VALIDATION_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "missing_field",
    "json_invalid": "invalid_json",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries of an endpoint's OpenAPI for its failures."""
    return {status: {"model": ErrorEnvelope} for status in statuses}


def error_responses_beside_text(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for an endpoint that answers with text: its failures are JSON all the same."""
    schema = {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {status: {"description": "The error envelope.", "content": content} for status in statuses}


def install_error_handlers(app: FastAPI) -> None:
    """Turn every expected exception into the envelope (the unexpected ones: `RequestContextMiddleware`)."""
    app.add_exception_handler(TideError, _on_tide_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def envelope(
    status: int, kind: str, code: str, message: str, param: str | None = None, headers: Any = None
) -> JSONResponse:
    """A response in the envelope's shape."""
    body = ErrorEnvelope(error=ErrorBody(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def _on_tide_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TideError)
    return error_response(error)


def error_response(error: TideError) -> JSONResponse:
    """The answer to an expected failure."""
    for kind, status, name in _STATUS:
        if isinstance(error, kind):
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            return envelope(status, name, error.code, error.message, error.param, headers)
    log.error("request.failed", code=error.code, error=error.message)
    return envelope(500, "server_error", error.code, error.message, error.param)


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}. GET /openapi.json lists the interface."
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return envelope(error.status_code, kind, code, message, headers=error.headers)


def internal_error() -> JSONResponse:
    """The answer to an unexpected exception: it tells the client nothing of the insides."""
    message = (
        "The control plane failed unexpectedly; its log has the details under this response's request id."
    )
    return envelope(500, "server_error", "internal_error", message)


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = _keep_deepest([_Problem(entry, error.body) for entry in error.errors()])
    message = "; ".join(
        f"{problem.param}: {problem.text}" if problem.param else problem.text for problem in problems
    )
    first = problems[0]
    return envelope(422, "invalid_request_error", first.code, message, first.param)


class _Problem:
    """One of pydantic's complaints, with the path as the client wrote it."""

    def __init__(self, entry: dict[str, Any], body: Any) -> None:
        self.code = _VALIDATION_CODES.get(entry["type"], "invalid_value")
        self.path = _client_path(entry["loc"], body)
        self.param = ".".join(str(part) for part in self.path) or None
        self.text = _text(entry)


def _text(entry: dict[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        return "this field does not exist; docs/job-spec.md lists the fields"
    if entry["type"] == "json_invalid":
        return f"the body is not valid JSON ({entry.get('ctx', {}).get('error', 'syntax error')})"
    if kind := _KINDS_OF_VALUES.get(entry["type"]):
        return f"input should be {kind}"
    if entry["type"] == "too_short":
        least, found = entry["ctx"]["min_length"], entry["ctx"]["actual_length"]
        return f"the list should have at least {least} {'entry' if least == 1 else 'entries'}, not {found}"
    text = str(entry["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _client_path(location: Sequence[str | int], body: Any) -> tuple[str | int, ...]:
    """Leave out what is not in the client's document: the tags of unions and the name of the part."""
    if not location or location[0] != "body":
        return tuple(location[1:])
    kept: list[str | int] = []
    here, last = body, len(location) - 1
    for number, part in enumerate(location[1:], start=1):
        if isinstance(here, dict) and isinstance(part, str) and (part in here or number == last):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        else:
            continue
        kept.append(part)
    return tuple(kept)


def _keep_deepest(problems: list[_Problem]) -> list[_Problem]:
    """Keep the problems with the longest paths: those of the branch of a union that the client meant."""
    kept = [
        problem
        for problem in problems
        if not any(
            len(other.path) > len(problem.path) and other.path[: len(problem.path)] == problem.path
            for other in problems
        )
    ]
    return kept[:10]

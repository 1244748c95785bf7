"""Who may use the interface: every request shows a client token, except for the few paths named here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.bearer_tokens import read_bearer_token
from service.access.client_tokens import Caller, check_role, identify
from service.db.session import Database
from service.observability.metrics import AUTHENTICATION_FAILURES
from tide_core.contracts.errors import ForbiddenError, TideError, UnauthorizedError

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json"})
"""Probes, scrapes and the interface's description."""
OPEN_FOLDERS = ("/static/", "/internal/v1/")
"""The page's own files; and what workers call, which checks their attempt token by itself."""
_MISSING, _FORBIDDEN = "token_missing", ForbiddenError.code
for _code in (_MISSING, "token_unknown", "token_revoked", "token_expired", _FORBIDDEN):
    AUTHENTICATION_FAILURES.labels(_code)  # from 0 on: a first failure is a rise too

bearer_scheme = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token made by `tide tokens create`; not asked for where `authentication` is `off`.",
)
"""Describes in the OpenAPI document what `AuthenticationMiddleware` demands."""


class AuthenticationMiddleware:
    """Refuses every request without a client token whose role allows the method.

    It stands before the routes: nothing of a refused request is read, and a new route is closed until
    it is named open.

    Args:
        app: what it guards.
        database: where client tokens are kept.
        refusal: makes the answer to a request that is refused.
    """

    def __init__(
        self, app: ASGIApp, database: Database, refusal: Callable[[Request, TideError], Response]
    ) -> None:
        self.app = app
        self._database = database
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan" or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            caller = await identify(self._database, read_client_token(request))
            check_role(caller, request.method)
        except (UnauthorizedError, ForbiddenError) as error:
            AUTHENTICATION_FAILURES.labels(error.code).inc()
            await self._refusal(request, error)(scope, receive, send)
            return
        request.state.caller = caller
        await self.app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path is answered without a token."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def read_client_token(request: Request) -> str:
    """The client token that a request shows.

    Raises:
        UnauthorizedError: ``token_missing``.
    """
    token = read_bearer_token(request)
    if token is None:
        raise UnauthorizedError(
            "Send a token as 'Authorization: Bearer tide_...' (for `tide`: set TIDE_TOKEN). "
            "`tide tokens create`, run where the control plane runs, makes one.",
            code=_MISSING,
        )
    return token


def _current_caller(request: Request) -> Caller | None:
    caller = getattr(request.state, "caller", None)
    assert caller is None or isinstance(caller, Caller)
    return caller


CurrentCaller = Annotated[Caller | None, Depends(_current_caller)]
"""Who sent the request; None where authentication is off."""

"""Every request has an id: the client's or a new one, in the log, in the answer."""

from __future__ import annotations

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import internal_error
from service.identifiers import new_id
from service.observability import metrics
from service.observability.logging import trace_fields
from tide_core.tracing import Tracing

REQUEST_ID_HEADER = "X-Request-Id"
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Probes and scrapes come every few seconds and say nothing."""
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._-]{1,128}")

log = structlog.get_logger(__name__)


class RequestContextMiddleware:
    """Binds the request id to the log, returns it in a header, logs, counts and traces each request.

    It also answers for unexpected exceptions, since the layers outside of it know no request id.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other protocols pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] in _UNTRACED:
            await self._handle(scope, receive, send)
            return
        parent = Headers(scope=scope).get("traceparent")
        with self._tracing.span("request", parent=parent, kind="server") as span:
            status = await self._handle(scope, receive, send)
            if span is not None:
                route = _route(scope)
                span.rename(f"{scope['method']} {route}")
                span.set(
                    http__request__method=scope["method"],
                    http__route=route,
                    http__response__status_code=status,
                    url__path=scope["path"],
                )
                if status >= 500:
                    span.fail(f"status {status}")

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Let the application answer; returns the status."""
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _ACCEPTABLE.fullmatch(given) else new_id("req")
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id, **trace_fields()):
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                log.exception("request.crashed", method=scope["method"], path=scope["path"])
                if status:  # the answer has begun: all that is left is to break it off
                    raise
                await internal_error()(scope, receive, send_with_id)
            finally:
                _account(scope, status, time.perf_counter() - started)
        return status


def _account(scope: Scope, status: int, seconds: float) -> None:
    metrics.observe_request(scope["method"], _route(scope), status, seconds)
    log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))


def _route(scope: Scope) -> str:
    """The template of the path: there are few of them."""
    return getattr(scope.get("route"), "path", "unmatched")

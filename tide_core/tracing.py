"""Traces by OpenTelemetry: off unless an endpoint is set, and then from the request to the driver of a phase.

What crosses a process boundary is the W3C `traceparent`. Both the control plane and the workers stand on this
module; the packages behind it (the extra `tracing`) are imported only when there is an endpoint. Sampling,
headers and resource attributes follow OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`,
`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from tide_core.contracts.errors import InvalidInputError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENV_TRACING_ENDPOINT = "TIDE_TRACING_ENDPOINT"
ENV_TRACEPARENT = "TIDE_TRACEPARENT"
"""Environment of a Ray job: where spans go, and the span that submitted it."""
JOB_ATTRIBUTE, ATTEMPT_ATTRIBUTE = "tide.job_id", "tide.attempt"
"""Attributes that the reconciler's and the workers' spans of a job share."""
EXPORT_TIMEOUT_SECONDS = 5
"""How long a worker that ends may wait for a collector that does not answer."""

SpanKind = Literal["internal", "server", "producer", "consumer"]
Attribute = str | int | float | bool

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def current_traceparent() -> str | None:
    """W3C trace context of the span that this task or thread is in; None without one, or without tracing."""
    return _current.get()


class Tracing:
    """Makes the spans of one process and sends them to a collector by OTLP over HTTP.

    Args:
        service: name of the process' kind, such as ``tide-control-plane``.
        endpoint: base URL of the collector, such as ``http://collector:4318``; None turns tracing off.

    Raises:
        InvalidInputError: ``tracing_not_installed``: there is an endpoint, but the packages are missing.
    """

    def __init__(self, service: str, endpoint: str | None) -> None:
        self._provider = None if endpoint is None else _provider(service, endpoint)

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        *,
        parent: str | None = None,
        kind: SpanKind = "internal",
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Iterator[OpenSpan | None]:
        """Time what is done in the block; an exception that leaves it marks the span as failed.

        Args:
            name: of few values: what is done, not to whom.
            parent: `traceparent` of the span that caused it; by default the one around it, if any.
            kind: role of the process in it.
            attributes: facts about it.

        Yields:
            The span, for facts that are known later; None without tracing.
        """
        if self._provider is None:
            yield None
            return
        from opentelemetry.trace import SpanKind as Kind

        tracer = self._provider.get_tracer("tide")
        context = _context_of(parent or current_traceparent())
        with tracer.start_as_current_span(
            name, context=context, kind=Kind[kind.upper()], attributes=attributes
        ) as opened:
            token = _current.set(_traceparent(opened))
            try:
                yield OpenSpan(opened)
            finally:
                _current.reset(token)

    def close(self) -> None:
        """Send what is not sent yet, within `EXPORT_TIMEOUT_SECONDS` or so."""
        if self._provider is not None:
            self._provider.shutdown()


class OpenSpan:
    """A span that has not ended."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        """Another name: a request's route is known once it was answered."""
        self._span.update_name(name)

    def set(self, **attributes: Attribute) -> None:
        """Add facts; `a__b` is the attribute `a.b`."""
        for name, value in attributes.items():
            self._span.set_attribute(name.replace("__", "."), value)

    def fail(self, reason: str) -> None:
        """Mark it as failed, where no exception says so."""
        from opentelemetry.trace import StatusCode

        self._span.set_status(StatusCode.ERROR, reason)


def _provider(service: str, endpoint: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidInputError(
            f"Tracing is on ({endpoint}), but its packages are missing ({error.name}): "
            "pip install 'tide-distill[tracing]', or leave tracing_endpoint out.",
            code="tracing_not_installed",
            param="tracing_endpoint",
        ) from None
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_SECONDS)
    # Not OpenTelemetry's global provider: one process may hold several control planes, as the tests do.
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _context_of(traceparent: str | None) -> Context:
    """OpenTelemetry's context for a parent; without one, or with a broken one, that of a new trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _traceparent(span: Span) -> str:
    """W3C trace context, level 1."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

"""Variables of tracing that a Ray job gets."""

from __future__ import annotations

from tide_core.tracing import ENV_TRACEPARENT, ENV_TRACING_ENDPOINT, current_traceparent


def tracing_environment(endpoint: str | None) -> dict[str, str]:
    """Where a Ray job sends its spans, and the span that it belongs to; empty without tracing."""
    traceparent = current_traceparent()
    if endpoint is None or traceparent is None:
        return {}
    return {ENV_TRACING_ENDPOINT: endpoint, ENV_TRACEPARENT: traceparent}

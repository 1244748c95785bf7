"""Structured logs: one event a line, as JSON."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from tide_core.tracing import current_traceparent


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send every log, ours and the libraries', to a stream (stderr) as one JSON object a line."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn.access", "httpx", "httpcore", "aiosqlite", "sse_starlette", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def trace_fields() -> dict[str, str]:
    """What ties a log line to the span that it was written in; empty without tracing."""
    traceparent = current_traceparent()
    return {} if traceparent is None else {"trace_id": traceparent.split("-")[1]}

"""Events: the append-only story of a job."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from tide_core.contracts.base import Contract


class Event(Contract):
    """One line of a job's story, as the REST interface and the SSE stream give it."""

    id: int = Field(ge=1)
    """Rises over all events; `Last-Event-ID` of the stream."""
    object: Literal["job.event"] = "job.event"
    job_id: str
    created_at: datetime
    type: str
    """Dotted name: "job.queued", "job.running", "checkpoint.saved", "data.prepared", ..."""
    level: Literal["info", "warning", "error"] = "info"
    message: str
    data: dict[str, Any] = Field(default_factory=dict)

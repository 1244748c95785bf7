"""Jobs as the REST interface shows them, for tests that have no control plane."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tide_core.contracts.job import JobSpec, resolve
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.resources import Job, RepeatableSpec

MOMENT = datetime(2026, 1, 1, 10, 20, 30, tzinfo=UTC)
SPEC = {
    "teacher": {"model": "tencent/WeDLM-8B-Instruct"},
    "student": {"model": "Qwen/Qwen3-0.6B"},
    "objective": "tide_shared",
    "data": {"sources": [{"location": "rows", "format": "hub"}]},
}


def job_object(job_id: str = "job-1", **changes: Any) -> Job:
    """A job that has just been queued, with some fields changed."""
    spec = resolve(JobSpec.model_validate(SPEC), pipeline=Pipeline.SHARED_TOKENIZER)
    facts: dict[str, Any] = {
        "id": job_id,
        "name": None,
        "status": "queued",
        "created_at": MOMENT,
        "updated_at": MOMENT,
        "started_at": None,
        "finished_at": None,
        "pipeline": "shared_tokenizer",
        "variant": "tide_shared",
        "attempt": 1,
        "progress": None,
        "error": None,
        "teacher": "teacher-1",
        "teacher_fingerprint": None,
        "dataset": None,
        "model": None,
        "result": None,
        "posted_by": None,
        "metadata": {},
        "spec": RepeatableSpec(**{name: value for name, value in spec if name != "variant"}),
    }
    return Job(**facts | changes)

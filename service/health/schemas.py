"""Health as the REST interface shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

CheckName = Literal["database", "reconciler", "ray"]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One thing that the control plane needs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: CheckName
    is_ready: bool
    message: str | None = None
    """What is wrong, when it is not ready."""


class Readiness(BaseModel):
    """Whether jobs can be taken and run; the status is 503 unless every check is ready."""

    status: Literal["ready", "not_ready"]
    checks: list[Check]

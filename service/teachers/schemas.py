"""Teacher pools as the REST interface shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.teacher import PoolState


class Lease(BaseModel):
    """A job's claim on a pool."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    job_id: str
    replicas: int
    """How many replicas the job asks for; the pool has at least the maximum over its leases."""
    max_replicas: int | None
    """How many the pool may grow to for this job; null: no more than `replicas`."""
    weight: float
    """The job's share in the pool's fair queue."""
    created_at: datetime


class Teacher(BaseModel):
    """A pool of replicas of one teacher, shared by jobs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """Name of the Ray Serve application."""
    object: Literal["teacher"] = "teacher"
    status: PoolState
    message: str | None
    """What Ray Serve says of it, when it is not ready."""
    teacher: TeacherSpec
    fingerprint: str | None
    """Hash over weights, dtype and code that the pool attested last."""
    replicas: int
    """How many replicas are wanted at least."""
    max_replicas: int
    """How many there may be while requests wait too long."""
    ready_replicas: int
    gpus_per_replica: float
    cpus_per_replica: float
    leases: list[Lease]
    created_at: datetime
    last_used_at: datetime

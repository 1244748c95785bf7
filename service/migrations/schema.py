"""The whole schema: importing this module makes every table known to the metadata."""

from __future__ import annotations

from service.access import tables as access_tables
from service.datasets import tables as dataset_tables
from service.db.base import Base
from service.events import tables as event_tables
from service.jobs import tables as job_tables
from service.models import tables as model_tables
from service.orchestrator import tables as leader_tables
from service.teachers import tables as teacher_tables

TABLE_MODULES = (
    access_tables,
    dataset_tables,
    event_tables,
    job_tables,
    leader_tables,
    model_tables,
    teacher_tables,
)
metadata = Base.metadata

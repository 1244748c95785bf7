"""Tide for programs: `tide.Client` and `tide.AsyncClient`. See docs/client.md.

This is the one package whose `__init__.py` is not empty: it is what users import. A name's module is imported
when the name is first used, so `import tide` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide.async_client import AsyncClient, AsyncJobHandle
    from tide.client import Client, JobHandle
    from tide.errors import (
        AccessDeniedError,
        ApiError,
        AuthenticationError,
        InvalidRequestError,
        MissingResourceError,
        RequestConflictError,
        ServerFailedError,
        TooManyRequestsError,
        UnexpectedAnswerError,
        UnreachableError,
        WaitTimeoutError,
    )
    from tide_core.contracts.errors import InvalidInputError, TideError
    from tide_core.contracts.event import Event
    from tide_core.contracts.job import JobSpec
    from tide_core.contracts.plan import Plan, PlanRequest
    from tide_core.contracts.resources import (
        Checkpoint,
        Dataset,
        Health,
        Job,
        JobProgress,
        MetricSeries,
        MetricSeriesList,
        Model,
        Readiness,
        Teacher,
    )
    from tide_core.contracts.states import JobState, Phase

__all__ = [
    "AccessDeniedError",
    "ApiError",
    "AsyncClient",
    "AsyncJobHandle",
    "AuthenticationError",
    "Checkpoint",
    "Client",
    "Dataset",
    "Event",
    "Health",
    "InvalidInputError",
    "InvalidRequestError",
    "Job",
    "JobHandle",
    "JobProgress",
    "JobSpec",
    "JobState",
    "MetricSeries",
    "MetricSeriesList",
    "MissingResourceError",
    "Model",
    "Phase",
    "Plan",
    "PlanRequest",
    "Readiness",
    "RequestConflictError",
    "ServerFailedError",
    "Teacher",
    "TideError",
    "TooManyRequestsError",
    "UnexpectedAnswerError",
    "UnreachableError",
    "WaitTimeoutError",
]

_MODULES = {
    "tide.async_client": ("AsyncClient", "AsyncJobHandle"),
    "tide.client": ("Client", "JobHandle"),
    "tide.errors": (
        "AccessDeniedError",
        "ApiError",
        "AuthenticationError",
        "InvalidRequestError",
        "MissingResourceError",
        "RequestConflictError",
        "ServerFailedError",
        "TooManyRequestsError",
        "UnexpectedAnswerError",
        "UnreachableError",
        "WaitTimeoutError",
    ),
    "tide_core.contracts.errors": ("InvalidInputError", "TideError"),
    "tide_core.contracts.event": ("Event",),
    "tide_core.contracts.job": ("JobSpec",),
    "tide_core.contracts.plan": ("Plan", "PlanRequest"),
    "tide_core.contracts.resources": (
        "Checkpoint",
        "Dataset",
        "Health",
        "Job",
        "JobProgress",
        "MetricSeries",
        "MetricSeriesList",
        "Model",
        "Readiness",
        "Teacher",
    ),
    "tide_core.contracts.states": ("JobState", "Phase"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'tide' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""What the probes and the scrape look at: the database, the reconciler's loop and the cluster.

In: `Sources`, which the composition root (`service.app`) puts on the application. Out: the parameter
`HealthSources` of the endpoints. Protocols keep this folder from knowing who the loop and the cluster are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from service.db.session import Database


class WatchedLoop(Protocol):
    """The reconciler, as far as its health is concerned."""

    @property
    def is_leading(self) -> bool:
        """Whether this control plane is the one that acts."""

    @property
    def seconds_since_look(self) -> float:
        """Time since the last look ended."""


class WatchedCluster(Protocol):
    """The cluster, as far as its health is concerned."""

    async def ping(self) -> None:
        """Return when the cluster answers."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that has a health.

    Attributes:
        look_interval_seconds: how often the loop looks.
        loop, cluster: None in a control plane that only keeps records.
    """

    database: Database
    look_interval_seconds: float
    loop: WatchedLoop | None
    cluster: WatchedCluster | None


def _sources(request: Request) -> Sources:
    sources = request.app.state.health_sources
    assert isinstance(sources, Sources)
    return sources


HealthSources = Annotated[Sources, Depends(_sources)]

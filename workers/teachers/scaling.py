"""How many replicas a teacher's pool needs: what each replica measures, and the policy that reads it.

Ray Serve asks every replica for its :class:`LoadMeter`'s figures, and asks :class:`QueueDelayPolicy` in its
controller for a number of replicas; the bounds, and how long a decision must hold before it is acted on, are
Serve's own. The policy travels to the controller by value, so this module imports nothing of Tide's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

QUEUE_DELAY = "queue_delay_seconds"
"""Mean time that requests waited for their first forward, over the last interval."""
BUSY = "busy_share"
"""Share of the last interval that was spent in forwards."""
LARGEST_GROWTH = 2.0
"""A pool at most doubles at once: how much a queue shortens is known only when the new replicas serve."""
SPARE_BELOW = 0.7
"""A replica is given back when the others would then be busy for less than this share of their time."""


class Counters(Protocol):
    """What the meter reads of :class:`workers.teachers.statistics.EngineStatistics`."""

    @property
    def requests(self) -> int: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def busy_seconds(self) -> float: ...
    @property
    def uptime_seconds(self) -> float: ...
    @property
    def queued_tokens(self) -> int: ...


class LoadMeter:
    """Turns an engine's counters, which only grow, into the load since the last look."""

    def __init__(self) -> None:
        self._last: Counters | None = None
        self._delay = 0.0

    def read(self, now: Counters) -> dict[str, float]:
        """The load since the last call (since the start, at the first one).

        Returns:
            :data:`QUEUE_DELAY` in seconds and :data:`BUSY`, a share; the latter may exceed 1 for one
            interval, since a forward is counted when it ends.
        """
        last, self._last = self._last, now
        answered = now.requests - (last.requests if last else 0)
        elapsed = now.uptime_seconds - (last.uptime_seconds if last else 0.0)
        if answered:
            self._delay = (now.queue_seconds - (last.queue_seconds if last else 0.0)) / answered
        elif now.queued_tokens:
            self._delay += elapsed  # no request was answered: those that wait have waited that much longer
        else:
            self._delay = 0.0
        busy = now.busy_seconds - (last.busy_seconds if last else 0.0)
        return {QUEUE_DELAY: self._delay, BUSY: busy / elapsed if elapsed > 0 else 0.0}


class ScalingContext(Protocol):
    """What the policy reads of :class:`ray.serve.config.AutoscalingContext`."""

    @property
    def current_num_replicas(self) -> int: ...
    @property
    def target_num_replicas(self) -> int: ...
    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...


@dataclass(frozen=True, slots=True)
class QueueDelayPolicy:
    """More replicas when requests wait longer than they should, fewer when the work fits on fewer.

    Attributes:
        target_seconds: mean queue delay that is still fine.
    """

    target_seconds: float

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas that the pool should have, and no state."""
        running, asked = context.current_num_replicas, context.target_num_replicas
        metrics = context.aggregated_metrics or {}
        delays, shares = metrics.get(QUEUE_DELAY, {}), metrics.get(BUSY, {})
        if not running or len(delays) < running:
            return asked, {}  # a new replica has not reported yet: decide when all have
        return decide_replicas(
            running,
            asked,
            delay_seconds=sum(delays.values()) / running,
            busy_replicas=sum(shares.values()),
            target_seconds=self.target_seconds,
        ), {}


def decide_replicas(
    running: int, asked: int, *, delay_seconds: float, busy_replicas: float, target_seconds: float
) -> int:
    """The policy without Ray.

    Args:
        running: replicas that serve.
        asked: replicas that were asked for; some may still be starting or stopping.
        delay_seconds: mean queue delay over the replicas.
        busy_replicas: sum of their busy shares: how many replicas the work keeps busy.
        target_seconds: see :class:`QueueDelayPolicy`.
    """
    if delay_seconds > target_seconds:
        growth = min(LARGEST_GROWTH, delay_seconds / target_seconds)
        return max(asked, math.ceil(running * growth))
    # The delay alone cannot tell whether a replica can be spared: it is nothing until the pool is full.
    enough = max(1, math.ceil(busy_replicas / SPARE_BELOW))
    return min(asked, enough)

"""What trainer 0 tells of a run: metrics of each step, progress, and the speeds at the end.

In: each step as it was drawn, answered and taken. Out: `Metrics` and `Progress` reports, and `Speeds`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tide_core.contracts.figures import (
    FEED_WAIT_SECONDS,
    STEP_SECONDS,
    TEACHER_WAIT_SECONDS,
    TOKENS_PER_SECOND,
)
from tide_core.contracts.reporting import Metrics
from tide_core.contracts.states import Phase
from tide_core.scoring.prefetcher import AnsweredStep
from tide_core.training.distiller import DistilledStep
from tide_core.training.step_figures import student_figures, teacher_figures
from tide_core.training.steps import DrawnStep
from workers.reporting.reporter import ProgressMeter, Reporter


@dataclass(frozen=True)
class Speeds:
    """How fast this attempt trained, over its steps but the first (which warms up).

    Attributes:
        seconds_per_step: mean.
        tokens_per_second: student tokens of all trainers.
        teacher_wait_ratio: share of the time in which a trainer stood waiting for the teacher.
        cache_hit_ratio: share of the sequences asked about whose answer the score cache held.
    """

    seconds_per_step: float = 0.0
    tokens_per_second: float = 0.0
    teacher_wait_ratio: float = 0.0
    cache_hit_ratio: float = 0.0


@dataclass(frozen=True)
class _Pace:
    """One step's part of the speeds."""

    seconds: float
    tokens: int
    teacher_wait_seconds: float
    asked_sequences: int
    cache_hits: int


class Journal:
    """Turns steps into reports; without a reporter it only keeps the speeds.

    Args:
        reporter: on trainer 0; None elsewhere.
        total: steps of the whole run.
    """

    def __init__(self, reporter: Reporter | None, total: int) -> None:
        self._reporter = reporter
        self._meter = None if reporter is None else ProgressMeter(reporter, Phase.TRAIN, "training", total)
        self._paces: list[_Pace] = []
        self._last = time.perf_counter()

    def start(self, step: int) -> None:
        """Say where training begins, and start the clock of the first step."""
        if self._meter is not None:
            self._meter.update(step)
        self._last = time.perf_counter()

    def record(self, answered: AnsweredStep[DrawnStep], taken: DistilledStep) -> None:
        """Report one step."""
        step, pace = answered.payload, self._measure_pace(answered, taken)
        self._paces.append(pace)
        if self._reporter is None or self._meter is None:
            return
        values = (
            student_figures(step, taken)
            | teacher_figures(step, answered.responses)
            | {
                STEP_SECONDS.name: pace.seconds,
                TOKENS_PER_SECOND.name: pace.tokens / max(pace.seconds, 1e-9),
                TEACHER_WAIT_SECONDS.name: answered.teacher_wait_seconds,
                FEED_WAIT_SECONDS.name: answered.feed_wait_seconds,
            }
        )
        self._reporter.send(Metrics(step=step.number + 1, values=values))
        self._meter.update(step.number + 1)

    def speeds(self) -> Speeds:
        """Means over the steps so far."""
        paces = self._paces[1:] or self._paces
        if not paces:
            return Speeds()
        seconds = sum(pace.seconds for pace in paces)
        asked = sum(pace.asked_sequences for pace in paces)
        return Speeds(
            seconds_per_step=seconds / len(paces),
            tokens_per_second=sum(pace.tokens for pace in paces) / seconds,
            teacher_wait_ratio=sum(pace.teacher_wait_seconds for pace in paces) / seconds,
            cache_hit_ratio=sum(pace.cache_hits for pace in paces) / max(1, asked),
        )

    def _measure_pace(self, answered: AnsweredStep[DrawnStep], taken: DistilledStep) -> _Pace:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        hits = sum(answer.cache_hits for answer in answered.responses)
        asked = answered.payload.asked_sequences
        return _Pace(seconds, taken.result.tokens, answered.teacher_wait_seconds, asked, hits)

"""The score path, event by event: trainers that ask ahead, replicas that batch from the fair queue, the wire.

Averages say which stage is the slowest; they do not see that sizes vary, that a step waits for the last of
many answers, and that a queue runs dry at the wrong moment. Here they are played through, with the replicas'
own queue (:mod:`tide_core.queueing.fair_queue`) and the prefetcher's own rule: while a trainer works on a
step, at most ``depth`` later ones are asked. The trainers of a job begin and end each step together.

Left out: the bound of the queue (``depth`` bounds what waits), failures and retries.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tide_core.contracts.plan import Simulated
from tide_core.planning.noise import DrawnSequences
from tide_core.queueing.fair_queue import Entry, FairQueue

ROUND_TRIP_SECONDS = 0.008
"""A question's way to a replica and back beyond compute and transfer: measured (docs/benchmarks.md)."""
_UNBOUNDED = 2**62
_SEED = 2604


@dataclass(frozen=True)
class SimulatedJob:
    """A job that asks.

    Attributes:
        trainers: how many.
        requests: questions of each trainer in a step, one a micro-batch.
        sequences: of each question.
        trainer_seconds: a step of the trainers when they wait for no answer.
        depth: steps asked ahead.
        sizes: where sequences' sizes are drawn from.
        row_bytes: of the answer, for each masked token.
        weight: share of the replicas.
    """

    trainers: int
    requests: int
    sequences: int
    trainer_seconds: float
    depth: int
    sizes: DrawnSequences
    row_bytes: float
    weight: float = 1.0


@dataclass(frozen=True)
class SimulatedPool:
    """The replicas.

    Attributes:
        replicas: how many.
        budget: tokens of a forward.
        batch_seconds: time of a forward with so many rows, of such a length, with so many masked tokens.
        link_bandwidth: bytes a second out of a replica, and into a trainer.
        round_trip: seconds of a question's way beyond compute and transfer.
    """

    replicas: int
    budget: int
    batch_seconds: Callable[[float, float, float], float]
    link_bandwidth: float
    round_trip: float = ROUND_TRIP_SECONDS


def simulate(jobs: Sequence[SimulatedJob], pool: SimulatedPool, steps: int) -> list[Simulated]:
    """Let every job take so many steps, the first few of which do not count.

    Returns:
        One result a job; ``teacher_busy_ratio`` is of all replicas while that job's counted steps ran.
    """
    return _Path(jobs, pool, steps).run()


class _Path:
    """Everything that happens, in the order of time."""

    def __init__(self, jobs: Sequence[SimulatedJob], pool: SimulatedPool, steps: int) -> None:
        self.pool = pool
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.draws = np.random.default_rng(_SEED)
        self.replicas = [_Replica(self) for _ in range(pool.replicas)]
        self.jobs = [_SimulatedJob(self, job, f"job-{number}", steps) for number, job in enumerate(jobs)]

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (when, next(self._order), what, arguments))

    def run(self) -> list[Simulated]:
        for job in self.jobs:
            job.begin()
        while self._events and not all(job.is_over for job in self.jobs):
            self.now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)
        return [job.result() for job in self.jobs]

    def busy_seconds(self) -> float:
        """Compute of all replicas so far."""
        return sum(replica.busy_until(self.now) for replica in self.replicas)

    def shorter_queue(self) -> _Replica:
        """The less loaded of two replicas at random, as Serve routes."""
        first, second = self.draws.integers(0, len(self.replicas), 2).tolist()
        one: _Replica = self.replicas[first]
        other: _Replica = self.replicas[second]
        return one if one.load <= other.load else other


@dataclass(eq=False)
class _SimulatedQuestion:
    """One request on its way."""

    trainer: _Trainer
    step: int
    masked: int
    sequences: int
    unanswered: int


@dataclass(eq=False)
class _Replica:
    """One engine: a queue, one forward at a time, one link."""

    path: _Path
    queue: FairQueue[_SimulatedQuestion] = field(default_factory=lambda: FairQueue(_UNBOUNDED))
    load: int = 0
    is_busy: bool = False
    busy: float = 0.0
    busy_since: float = 0.0
    link_free: float = 0.0

    def take(self, entries: list[Entry[_SimulatedQuestion]]) -> None:
        """Let the sequences of a question wait."""
        self.queue.push(entries)
        if not self.is_busy:
            self._forward()

    def busy_until(self, now: float) -> float:
        """Seconds of compute up to now."""
        return self.busy + (now - self.busy_since if self.is_busy else 0.0)

    def _forward(self) -> None:
        batch = self.queue.take(self.path.pool.budget)
        if not batch:
            return
        rows = sum(entry.rows for entry in batch)
        masked = sum(entry.payload.masked / entry.payload.sequences for entry in batch)
        longest = max(entry.length for entry in batch)
        duration = self.path.pool.batch_seconds(rows, longest, masked)
        self.is_busy, self.busy_since = True, self.path.now
        self.path.at(self.path.now + duration, self._finish, batch)

    def _finish(self, batch: list[Entry[_SimulatedQuestion]]) -> None:
        now = self.path.now
        self.is_busy, self.busy = False, self.busy + now - self.busy_since
        for entry in batch:
            self.load -= entry.tokens
            question = entry.payload
            question.unanswered -= 1
            if not question.unanswered:
                self._send(question)
        self._forward()

    def _send(self, question: _SimulatedQuestion) -> None:
        pool = self.path.pool
        taken = question.masked * question.trainer.job.facts.row_bytes / pool.link_bandwidth
        left = max(self.path.now, self.link_free) + taken
        self.link_free = left
        trainer = question.trainer
        # The trainer's own link takes one answer after the other.
        trainer.link_free = max(left, trainer.link_free + taken)
        self.path.at(trainer.link_free + pool.round_trip / 2, trainer.receive, question.step)


@dataclass(eq=False)
class _Trainer:
    """One trainer of a job."""

    job: _SimulatedJob
    link_free: float = 0.0
    asked: int = 0
    unanswered: dict[int, int] = field(default_factory=dict)

    def ask_up_to(self, last: int) -> None:
        """Ask every step up to this one that was not asked yet."""
        while self.asked <= last:
            self.unanswered[self.asked] = self.job.facts.requests
            for _ in range(self.job.facts.requests):
                self._ask(self.asked)
            self.asked += 1

    def receive(self, step: int) -> None:
        """An answer came."""
        self.unanswered[step] -= 1
        self.job.look(step)

    def _ask(self, step: int) -> None:
        path, facts = self.job.path, self.job.facts
        chosen = path.draws.integers(0, facts.sizes.teacher_rows.size, facts.sequences)
        rows, lengths = facts.sizes.teacher_rows[chosen], facts.sizes.teacher_lengths[chosen]
        asked = int((rows > 0).sum())
        question = _SimulatedQuestion(self, step, int(facts.sizes.teacher_masked[chosen].sum()), asked, asked)
        entries = [
            Entry(self.job.name, facts.weight, None, row, length, question)
            for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)
            if row
        ]
        if not entries:  # nothing is masked, nothing is asked
            self.unanswered[step] -= 1
            return
        replica = path.shorter_queue()
        replica.load += sum(entry.tokens for entry in entries)
        path.at(path.now + path.pool.round_trip / 2, replica.take, entries)


class _SimulatedJob:
    """A job's trainers, step by step."""

    def __init__(self, path: _Path, facts: SimulatedJob, name: str, steps: int) -> None:
        self.path = path
        self.facts = facts
        self.name = name
        self._trainers = [_Trainer(self) for _ in range(facts.trainers)]
        self._warm_up = min(facts.depth + 2, steps - 1)
        self._steps = steps
        self._step = 0
        self._wanted_at = 0.0
        self._is_computing = False
        self._counted_from = (0.0, 0.0)
        self._ended = (0.0, 0.0)
        self._waited = 0.0

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken."""
        return self._step >= self._steps

    def begin(self) -> None:
        """Ask the first steps."""
        self._want()

    def look(self, step: int) -> None:
        """Begin the present step once every trainer has all its answers."""
        if step != self._step or self._is_computing or self.is_over:
            return
        if any(trainer.unanswered[step] for trainer in self._trainers):
            return
        if step >= self._warm_up:
            self._waited += self.path.now - self._wanted_at
        self._is_computing = True
        self.path.at(self.path.now + self.facts.trainer_seconds, self._end_step)

    def result(self) -> Simulated:
        """Figures of the counted steps."""
        (began, busy_before), (ended, busy_after) = self._counted_from, self._ended
        counted, seconds = self._steps - self._warm_up, ended - began
        return Simulated(
            steps=counted,
            seconds_per_step=seconds / counted,
            teacher_wait_ratio=self._waited / seconds if seconds else 0.0,
            teacher_busy_ratio=(busy_after - busy_before) / (seconds * len(self.path.replicas)),
        )

    def _want(self) -> None:
        self._wanted_at = self.path.now
        if self._step == self._warm_up:
            self._counted_from = (self.path.now, self.path.busy_seconds())
        for trainer in self._trainers:
            trainer.ask_up_to(self._step + self.facts.depth)
        self.look(self._step)

    def _end_step(self) -> None:
        for trainer in self._trainers:
            del trainer.unanswered[self._step]
        self._is_computing = False
        self._step += 1
        if self.is_over:
            self._ended = (self.path.now, self.path.busy_seconds())
            return
        self._want()

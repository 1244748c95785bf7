"""The queue of a teacher replica: fair between jobs, bounded, and giving out batches of like lengths.

Start-time fair queueing (Goyal, Vin and Cheng 1996): every job has a virtual time that advances by
``tokens / weight`` when it is served, and the job that is furthest behind goes next. A job that was idle
comes back at the present virtual time, so it can neither save up credit nor shed a debt. No threads and no
clock in here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tide_core.contracts.errors import RetryableScoreError

Payload = TypeVar("Payload")


@dataclass(slots=True, eq=False)
class Entry(Generic[Payload]):
    """One sequence that waits.

    Attributes:
        job_id: who asks.
        weight: the job's share.
        kind: entries go into one batch only when their kinds are equal.
        rows: rows of the forward it takes.
        length: tokens of each row.
        payload: what the caller gets back.
    """

    job_id: str
    weight: float
    kind: Hashable
    rows: int
    length: int
    payload: Payload

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(slots=True, eq=False)
class _Account(Generic[Payload]):
    virtual_time: float
    tokens: int = 0
    waiting: dict[Hashable, deque[tuple[int, Entry[Payload]]]] = field(default_factory=dict)

    def oldest_lane(self) -> Hashable:
        return min(self.waiting, key=lambda lane: self.waiting[lane][0][0])


class FairQueue(Generic[Payload]):
    """Entries of many jobs, given out in batches.

    Args:
        max_tokens: bound of what may wait.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._jobs: dict[str, _Account[Payload]] = {}
        self._now = 0.0
        self._tokens = 0
        self._arrivals = 0

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    @property
    def jobs(self) -> int:
        """Jobs that have something waiting."""
        return sum(1 for job in self._jobs.values() if job.waiting)

    def push(self, entries: Sequence[Entry[Payload]], *, is_bounded: bool = True) -> None:
        """Let the entries of one request wait, all or none.

        A job may always hold its equal part of the bound, so a job that fills the queue shuts no other out; a
        request that is larger than the bound is taken when its job has nothing else waiting.

        Raises:
            RetryableScoreError: the queue is full.
        """
        if not entries:
            return
        tokens = sum(entry.tokens for entry in entries)
        job = self._jobs.get(entries[0].job_id) or _Account(self._now)
        if is_bounded and self._is_full_for(job, tokens):
            raise RetryableScoreError(
                f"The teacher's queue is full ({self._tokens} of {self.max_tokens} tokens wait): try again.",
                code="queue_full",
            )
        if not job.waiting:
            job.virtual_time = max(job.virtual_time, self._now)
        self._jobs[entries[0].job_id] = job
        for entry in entries:
            lane = (entry.kind, length_bucket(entry.length))
            job.waiting.setdefault(lane, deque()).append((self._arrivals, entry))
            self._arrivals += 1
        job.tokens += tokens
        self._tokens += tokens

    def take(self, max_tokens: int) -> list[Entry[Payload]]:
        """The next batch: at most ``max_tokens`` counting padding, but at least one entry if any waits.

        The job that is furthest behind gives its oldest entry, which fixes kind and length bucket; the rest
        is filled with entries of the same kind and bucket, again from the job that is furthest behind.
        """
        active = {name: job for name, job in self._jobs.items() if job.waiting}
        if not active:
            return []
        behind = min(active.values(), key=lambda job: job.virtual_time)
        self._now = max(self._now, behind.virtual_time)
        lane = behind.oldest_lane()
        batch: list[Entry[Payload]] = []
        rows = longest = 0
        while True:
            able = [job for job in active.values() if lane in job.waiting]
            if not able:
                break
            job = min(able, key=lambda each: each.virtual_time)
            entry = job.waiting[lane][0][1]
            rows, longest = rows + entry.rows, max(longest, entry.length)
            if batch and rows * longest > max_tokens:
                break
            batch.append(entry)
            self._serve(job, lane, entry)
        self._forget_settled()
        return batch

    def drain(self) -> list[Entry[Payload]]:
        """Everything that waits; the queue is empty afterwards."""
        entries = [entry for job in self._jobs.values() for lane in job.waiting.values() for _, entry in lane]
        self._jobs.clear()
        self._tokens = 0
        return entries

    def _is_full_for(self, job: _Account[Payload], tokens: int) -> bool:
        if self._tokens + tokens <= self.max_tokens:
            return False
        active = self.jobs + (0 if job.waiting else 1)
        is_within_own_part = job.tokens + tokens <= self.max_tokens / active
        is_single_giant = not job.waiting and tokens > self.max_tokens
        return not (is_within_own_part or is_single_giant)

    def _serve(self, job: _Account[Payload], lane: Hashable, entry: Entry[Payload]) -> None:
        job.virtual_time += entry.tokens / entry.weight
        job.tokens -= entry.tokens
        self._tokens -= entry.tokens
        job.waiting[lane].popleft()
        if not job.waiting[lane]:
            del job.waiting[lane]

    def _forget_settled(self) -> None:
        """Drop idle jobs that owe nothing, so that the memory does not grow with the jobs of a year.

        When nothing waits any more, no job waited because of another: all debts are void.
        """
        if not self._tokens:
            self._now = max(job.virtual_time for job in self._jobs.values())
        settled = [
            name for name, job in self._jobs.items() if not job.waiting and job.virtual_time <= self._now
        ]
        for name in settled:
            del self._jobs[name]


def length_bucket(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96 ... that holds ``length``: padding is below a third of a row."""
    bucket = 16
    while bucket < length:
        if bucket * 3 // 2 >= length:
            return bucket * 3 // 2
        bucket *= 2
    return bucket

"""Steps with their questions, as the prefetcher takes them, and with their answers, as the trainer does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tide_core.contracts.scores import ScoreResponse
from workers.scores.prefetcher import AnsweredStep, AskedStep
from workers.student.feed import MicroBatch


@dataclass(frozen=True)
class DrawnStep:
    """One step's micro-batches on this trainer."""

    number: int
    batches: Sequence[MicroBatch]


def asked_steps(
    micro_batches: Callable[[int], Sequence[MicroBatch]], numbers: Iterable[int]
) -> Iterator[AskedStep[DrawnStep]]:
    """Draw steps one after the other, each with the questions of its micro-batches."""
    for number in numbers:
        batches = micro_batches(number)
        requests = [batch.request for batch in batches if batch.request is not None]
        yield AskedStep(DrawnStep(number, batches), requests)


def answers_of(step: AnsweredStep[DrawnStep]) -> list[ScoreResponse | None]:
    """The answer to each micro-batch, None where nothing was asked."""
    responses = iter(step.responses)
    return [None if batch.request is None else next(responses) for batch in step.payload.batches]

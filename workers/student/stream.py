"""Steps with their questions, as the prefetcher takes them, and with their answers, as the trainer does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tide_core.contracts.scores import ScoreResponse
from tide_core.scoring.prefetcher import AnsweredStep, AskedStep
from tide_core.training.collating import MicroBatch
from tide_core.training.matching import unpacked


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


def asked_sequences(step: AnsweredStep[DrawnStep]) -> int:
    """How many sequences this trainer's step asked the teacher about."""
    return sum(batch.request.batch for batch in step.payload.batches if batch.request is not None)


def teacher_figures(responses: Sequence[ScoreResponse]) -> dict[str, float]:
    """What a step's answers cost: the longest wait in a replica's queue, its compute, and their bytes."""
    return {
        "teacher_queue_seconds": max(answer.queue_seconds for answer in responses),
        "teacher_compute_seconds": sum(answer.compute_seconds for answer in responses),
        "teacher_bytes": float(sum(answer.values.nbytes for answer in responses)),
    }


def tail_masses(step: AnsweredStep[DrawnStep]) -> dict[str, float]:
    """Mean share of the teacher's probability that its k likeliest ids leave out, by temperature.

    What top-k scores do not tell: the closer to 0, the nearer their losses are to the exact ones.
    """
    question = next((b.request.top_k for b in step.payload.batches if b.request is not None), None)
    if question is None:
        return {}
    _, logits, log_tails = unpacked(np.concatenate([answer.array for answer in step.responses]), question)
    shares = {}
    for column, temperature in enumerate(question.temperatures):
        tail = log_tails[:, column]
        known = (logits / temperature).logsumexp(dim=1)
        shares[f"teacher_tail_mass/{temperature:g}"] = float(
            (tail - torch.logaddexp(known, tail)).exp().mean()
        )
    return shares

"""The figures of one step, of the student and of the teacher, by their names in the contracts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tide_core.contracts.figures import (
    GRADIENT_NORM,
    LAMBDA,
    LEARNING_RATE,
    LOSS,
    MASK_RATE,
    PADDING_RATIO,
    TEACHER_BYTES,
    TEACHER_CACHE_HIT_RATIO,
    TEACHER_COMPUTE_SECONDS,
    TEACHER_QUEUE_SECONDS,
    TEACHER_TAIL_MASS,
)
from tide_core.contracts.scores import ScoreResponse, TopKQuestion
from tide_core.training.collating import padding_ratio
from tide_core.training.distiller import DistilledStep
from tide_core.training.matching import unpack_top_k
from tide_core.training.steps import DrawnStep


def student_figures(step: DrawnStep, taken: DistilledStep) -> dict[str, float]:
    """Losses in total and by term, and what the step did to the student."""
    result = taken.result
    figures = {
        LOSS.name: result.total,
        **{LOSS.of(name): value for name, value in result.parts.items()},
        MASK_RATE.name: result.counts.masked_positions / max(1, result.counts.maskable_tokens),
        GRADIENT_NORM.name: result.gradient_norm,
        LEARNING_RATE.name: taken.learning_rate,
        PADDING_RATIO.name: padding_ratio(step.batches),
    }
    if taken.mean_lambda is not None:
        figures[LAMBDA.name] = taken.mean_lambda
    return figures


def teacher_figures(step: DrawnStep, answers: Sequence[ScoreResponse]) -> dict[str, float]:
    """What a step's answers cost, and what top-k scores leave out; nothing where nothing was asked."""
    if not answers:
        return {}
    figures = {
        TEACHER_QUEUE_SECONDS.name: max(answer.queue_seconds for answer in answers),
        TEACHER_COMPUTE_SECONDS.name: sum(answer.compute_seconds for answer in answers),
        TEACHER_BYTES.name: float(sum(answer.values.nbytes for answer in answers)),
        TEACHER_CACHE_HIT_RATIO.name: sum(a.cache_hits for a in answers) / step.asked_sequences,
    }
    question = step.requests[0].top_k
    return figures if question is None else figures | tail_masses(answers, question)


def tail_masses(answers: Sequence[ScoreResponse], question: TopKQuestion) -> dict[str, float]:
    """Mean share of the teacher's probability that its k likeliest ids leave out, by temperature.

    What top-k scores do not tell: the closer to 0, the nearer their losses are to the exact ones.
    """
    _, logits, log_tails = unpack_top_k(np.concatenate([answer.array for answer in answers]), question)
    shares = {}
    for column, temperature in enumerate(question.temperatures):
        tail = log_tails[:, column]
        known = (logits / temperature).logsumexp(dim=1)
        share = (tail - tail.logaddexp(known)).exp().mean()
        shares[TEACHER_TAIL_MASS.of(f"{temperature:g}")] = float(share)
    return shares

"""Kullback-Leibler divergences between student and teacher over the shared vocabulary (pipeline B).

Both carry the factor ``T^2`` that keeps gradients comparable over temperatures, and both stop the gradient at
the teacher. Source: TIDE (arXiv 2604.26951), baseline and reverse variants of the shared-tokenizer pipeline.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tide_core.losses.validation import (
    accumulation_dtype,
    require_finite,
    require_same_shape,
    require_temperature,
)


def forward_kl(
    student_logits: Float[Tensor, "masked vocab"],
    teacher_logits: Float[Tensor, "masked _"],
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(softmax(z / T) || softmax(s / T))`` per position: the student must cover the teacher.

    Gradient with respect to ``s``: ``T (softmax(s / T) - softmax(z / T))``.

    Args:
        student_logits: ``s``, cut to the shared vocabulary.
        teacher_logits: ``z``, cut to the shared vocabulary; no gradient flows into it.
        temperature: ``T > 0``.

    Returns:
        float32 (float64 for float64 logits), in nats, not averaged.

    Raises:
        ShapeError: when the shapes differ (cut both to the shared vocabulary first).
        NonFiniteError: when a logit is NaN or infinite.
        InvalidInputError: when the temperature is not positive.
    """
    student, teacher = log_softmax_pair(student_logits, teacher_logits, temperature)
    return temperature**2 * kl_of_log_probs(teacher, student)


def reverse_kl(
    student_logits: Float[Tensor, "masked vocab"],
    teacher_logits: Float[Tensor, "masked _"],
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(softmax(s / T) || softmax(z / T))`` per position: the student seeks a mode of the teacher.

    Gradient with respect to ``s``: ``T q (log q - log p - KL)`` with ``q`` the student, ``p`` the teacher.
    Arguments, result and errors as in :func:`forward_kl`.
    """
    student, teacher = log_softmax_pair(student_logits, teacher_logits, temperature)
    return temperature**2 * kl_of_log_probs(student, teacher)


def kl_of_log_probs(
    log_p: Float[Tensor, "masked outcome"], log_q: Float[Tensor, "masked outcome"]
) -> Float[Tensor, " masked"]:
    """``KL(p || q) = sum_v p_v (log p_v - log q_v)`` of normalised, finite log-probabilities."""
    p, q = log_p.exp(), log_q.exp()
    # The last two terms sum to zero, and with them the rounding of both normalisers cancels to first order:
    # every summand is then at least 0, and a small divergence keeps its digits.
    return (p * (log_p - log_q) - p + q).sum(dim=-1)


def log_softmax_pair(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Checked log-probabilities of student and (detached) teacher at a temperature."""
    require_temperature(temperature)
    require_same_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    require_finite("student_logits", student_logits)
    require_finite("teacher_logits", teacher_logits)
    dtype = accumulation_dtype(student_logits)
    student = (student_logits.to(dtype) / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits.detach().to(dtype) / temperature).log_softmax(dim=-1)
    return student, teacher

"""TIDAL's moving target between student and teacher (TIDE, arXiv 2604.26951; after TAID, 2501.16937)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError
from tide_core.losses.kl import kl_of_log_probs, log_softmax_pair


def tidal_kl(
    student_logits: Float[Tensor, "masked vocab"],
    teacher_logits: Float[Tensor, "masked _"],
    lambda_t: Float[Tensor, "*#masked"] | float,
    *,
    temperature: float,
) -> Float[Tensor, " masked"]:
    """``T^2 KL(r || softmax(s / T))`` with ``r = softmax(((1 - lambda) s + lambda z) / T)``, detached.

    At ``lambda`` = 0 value and gradient vanish; at 1 this is :func:`tide_core.losses.kl.forward_kl`. Gradient
    with respect to ``s``: ``T (softmax(s / T) - r)``. Not yet multiplied by the timestep weight ``w2(t)``.

    Args:
        student_logits: ``s``, cut to the shared vocabulary.
        teacher_logits: ``z``, cut to the shared vocabulary; no gradient flows into it.
        lambda_t: the teacher's share at each position, in [0, 1].
        temperature: ``T > 0``.

    Returns:
        float32 (float64 for float64 logits), in nats, not averaged.

    Raises:
        ShapeError: when the logits' shapes differ.
        NonFiniteError: when a logit is NaN or infinite.
        InvalidInputError: when the temperature is not positive or a share lies outside [0, 1].
    """
    student, teacher = log_softmax_pair(student_logits, teacher_logits, temperature)
    share = torch.as_tensor(lambda_t, dtype=student.dtype, device=student.device)
    require_shares(share)
    # Mixing log-probabilities instead of logits changes r by nothing: the difference is constant in v.
    share = share[..., None]
    target = ((1.0 - share) * student.detach() + share * teacher).log_softmax(dim=-1)
    return temperature**2 * kl_of_log_probs(target, student)


def require_shares(lambda_t: Tensor) -> None:
    """Raise :class:`InvalidInputError` unless every interpolation share lies in [0, 1]."""
    if not bool(((lambda_t >= 0) & (lambda_t <= 1)).all()):
        raise InvalidInputError("every element of lambda_t must lie in [0, 1]", param="lambda_t")

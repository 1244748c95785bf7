"""Muon for pretraining: momentum whose every matrix update is made orthogonal.

On these models it reaches a given loss in about half the steps of AdamW. torch's own takes two-dimensional
parameters only; the experts of a mixture are stacked in three.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients (Keller Jordan's Muon): singular values land within about 0.7 to 1.2.
_A, _B, _C = 3.4445, -4.775, 2.0315
_ROUNDS = 5


def orthogonalise(update: Float[Tensor, "*stack rows columns"]) -> Float[Tensor, "*stack rows columns"]:
    """Bring all singular values of each matrix near 1, singular vectors unchanged (Newton-Schulz)."""
    is_tall = update.shape[-2] > update.shape[-1]
    wide = update.mT if is_tall else update
    matrix: Tensor = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        gram = matrix @ matrix.mT
        matrix = _A * matrix + (_B * gram + _C * gram @ gram) @ matrix
    return matrix.mT if is_tall else matrix


class Muon:
    """Nesterov momentum, orthogonalised, scaled as wide matrices need it. Weight decay is decoupled.

    Args:
        parameters: matrices or stacks of matrices.
        momentum: of the running gradient.
        weight_decay: multiplied by the learning rate.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        self._parameters = list(parameters)
        self._velocities = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient and drop the gradient."""
        for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
            if parameter.grad is None:
                continue
            velocity.lerp_(parameter.grad, 1 - self._momentum)
            update = orthogonalise(parameter.grad.lerp(velocity, self._momentum))
            scale = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
            parameter.mul_(1 - learning_rate * self._weight_decay).add_(update, alpha=-learning_rate * scale)
            parameter.grad = None

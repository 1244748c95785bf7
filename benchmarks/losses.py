"""Each loss plain (full logits at the masked rows) and as Tide computes it: time and peak memory.

Run in a process of its own by :mod:`benchmarks.pieces`: ``python -m benchmarks.losses time|memory``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.measuring import PeakMemory, alternate
from tide_core.losses.cross_entropy import target_log_probs
from tide_core.losses.fused_linear import (
    linear_forward_kl,
    linear_reverse_kl,
    linear_target_log_probs,
    linear_tidal_kl,
)
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.tidal import tidal_kl

TEMPERATURE = 2.0
SHARE = 0.4


@dataclass(frozen=True)
class Operands:
    """Hidden states and heads of a student and a teacher at the masked rows."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    ids: Tensor
    share: Tensor

    @property
    def vocab(self) -> int:
        return self.head.shape[0]


def operands(rows: int, vocab: int, width: int, teacher_width: int, device: str = "cpu") -> Operands:
    """Drawn operands, the student's with gradient."""
    generator = torch.Generator().manual_seed(5)

    def draw_normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    return Operands(
        draw_normal(rows, width).requires_grad_(),
        (0.05 * draw_normal(vocab, width)).requires_grad_(),
        draw_normal(rows, teacher_width),
        0.05 * draw_normal(vocab, teacher_width),
        torch.randint(vocab, (rows,), generator=generator).to(device),
        torch.full((rows,), SHARE, device=device),
    )


PLAIN: dict[str, Callable[[Operands], Tensor]] = {
    "target_log_probs": lambda x: target_log_probs(x.hidden @ x.head.T, x.ids),
    "forward_kl": lambda x: forward_kl(*_logits(x), temperature=TEMPERATURE),
    "reverse_kl": lambda x: reverse_kl(*_logits(x), temperature=TEMPERATURE),
    "tidal": lambda x: tidal_kl(*_logits(x), x.share, temperature=TEMPERATURE),
}
FUSED: dict[str, Callable[[Operands], Tensor]] = {
    "target_log_probs": lambda x: linear_target_log_probs(x.hidden, x.head, x.ids),
    "forward_kl": lambda x: linear_forward_kl(*_sides(x), temperature=TEMPERATURE, shared_vocab=x.vocab),
    "reverse_kl": lambda x: linear_reverse_kl(*_sides(x), temperature=TEMPERATURE, shared_vocab=x.vocab),
    "tidal": lambda x: linear_tidal_kl(*_sides(x), x.share, temperature=TEMPERATURE, shared_vocab=x.vocab),
}


def _logits(x: Operands) -> tuple[Tensor, Tensor]:
    return x.hidden @ x.head.T, x.teacher_hidden @ x.teacher_head.T


def _sides(x: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.hidden, x.head, x.teacher_hidden, x.teacher_head


def gradients(form: Callable[[Operands], Tensor], x: Operands) -> tuple[Tensor, ...]:
    """Forward and backward of a loss's mean."""
    return torch.autograd.grad(form(x).mean(), (x.hidden, x.head))


def times(x: Operands, *, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of forward and backward, plain and fused in turns; both must agree."""
    found = {}
    for name in PLAIN:
        for one, other in zip(gradients(PLAIN[name], x), gradients(FUSED[name], x), strict=True):
            assert float((one - other).norm() / one.norm()) < 1e-3, f"{name}: plain and fused disagree"
        found[name] = alternate(
            {
                "plain": partial(gradients, PLAIN[name], x),
                "fused": partial(gradients, FUSED[name], x),
            },
            repeats=repeats,
        )
    return found


def peaks(x: Operands, device: str = "cpu") -> dict[str, dict[str, int]]:
    """Peak bytes of forward and backward above the operands and the head's gradient."""
    found: dict[str, dict[str, int]] = {}
    kept = x.head.numel() * x.head.element_size()
    for name in PLAIN:
        found[name] = {}
        for kind, forms in (("plain", PLAIN), ("fused", FUSED)):
            gradients(forms[name], x)
            with PeakMemory(device) as peak:
                gradients(forms[name], x)
            found[name][kind] = max(0, peak.bytes - kept)
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "memory"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--teacher-width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    x = operands(options.rows, options.vocab, options.width, options.teacher_width, options.device)
    found = peaks(x, options.device) if options.what == "memory" else times(x, repeats=options.repeats)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

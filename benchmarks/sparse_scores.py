"""What a teacher's top-k scores lose against its full distribution, on a real language model.

Run: ``python benchmarks/sparse_scores.py MODEL [--gguf FILE] [--text FILE ...] [--positions 400]``. MODEL: a
folder that ``transformers`` loads as a causal model. The teacher reads the whole context; the student is the
same model with the last ``--student-context`` tokens only, which makes its predictions worse the way a weaker
model's are. Prints one JSON line per (objective, temperature, k, estimator): the value's error and the
gradient's, relative to the exact ones. The gradient is taken with respect to the student's logits.
"""

from __future__ import annotations

import argparse
import json
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.sparse import (
    DEFAULT_CANDIDATES,
    TopK,
    bucket_log_probs,
    sparse_forward_kl,
    sparse_reverse_kl,
    sparse_tidal_kl,
    top_k_of_logits,
)
from tide_core.losses.tidal import tidal_kl

SHARE = 0.5
EXACT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward_kl": lambda s, z, t: forward_kl(s, z, temperature=t),
    "reverse_kl": lambda s, z, t: reverse_kl(s, z, temperature=t),
    "tidal": lambda s, z, t: tidal_kl(s, z, SHARE, temperature=t),
}


def nearest(objective: str, student: Tensor, top: TopK, temperature: float) -> Tensor:
    """Ours: k ids, the student's own likeliest tail ids held against the cap, and the rest."""
    own = student.detach().scatter(1, top.ids, float("-inf")).topk(DEFAULT_CANDIDATES, dim=1).indices
    return _sparse(objective, student, torch.cat([top.ids, own], dim=1), top, temperature)


def buckets(objective: str, student: Tensor, top: TopK, temperature: float) -> Tensor:
    """The same without candidates: k ids and one bucket for everything else."""
    return _sparse(objective, student, top.ids, top, temperature)


def _sparse(objective: str, student: Tensor, ids: Tensor, top: TopK, temperature: float) -> Tensor:
    scores = (bucket_log_probs(student, ids, temperature=temperature), top.log_probs, top.log_tail)
    if objective == "forward_kl":
        return sparse_forward_kl(*scores, temperature=temperature)
    if objective == "reverse_kl":
        return sparse_reverse_kl(*scores, temperature=temperature)
    share = torch.full((student.shape[0],), SHARE, dtype=student.dtype)
    return sparse_tidal_kl(*scores, share, temperature=temperature)


def even_tail(objective: str, student: Tensor, top: TopK, temperature: float) -> Tensor:
    """The tail's mass spread evenly over all other ids."""
    others = student.shape[1] - top.ids.shape[1]
    even = (top.log_tail - torch.log(torch.tensor(float(others))))[:, None].expand_as(student)
    filled = even.scatter(1, top.ids, top.log_probs) * temperature
    return EXACT[objective](student, filled, temperature)


def renormalise(objective: str, student: Tensor, top: TopK, temperature: float) -> Tensor:
    """The tail left out: both sides normalised over the k ids."""
    return EXACT[objective](student.gather(1, top.ids), top.log_probs * temperature, temperature)


ESTIMATORS = {"nearest": nearest, "buckets": buckets, "even tail": even_tail, "renormalised": renormalise}


def compare(
    student: Tensor, teacher: Tensor, objective: str, temperature: float, k: int
) -> list[dict[str, Any]]:
    """Errors of every estimator for one objective, temperature and k."""
    top = top_k_of_logits(teacher, k, temperature=temperature)
    variable = student.clone().requires_grad_()
    exact = EXACT[objective](variable, teacher, temperature)
    (wanted,) = torch.autograd.grad(exact.sum(), variable)
    rows = []
    for name, estimate in ESTIMATORS.items():
        value = estimate(objective, variable, top, temperature)
        (gradient,) = torch.autograd.grad(value.sum(), variable)
        rows.append(
            {
                "objective": objective,
                "temperature": temperature,
                "k": k,
                "estimator": name,
                "tail_mass": float(top.log_tail.exp().mean()),
                "exact": float(exact.detach().mean()),
                "value_error": float((value.sum() / exact.sum() - 1.0).detach()),
                "gradient_error": float((gradient - wanted).norm() / wanted.norm()),
            }
        )
    return rows


def logits_of_both(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits ``[positions, vocab]`` on the texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": arguments.gguf} if arguments.gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, **options)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, **options).eval()
    texts = [path.read_text() for path in arguments.text] or [pydoc.plain(pydoc.render_doc(pydoc))]
    ids = torch.tensor(tokenizer("\n\n".join(texts))["input_ids"])
    context, window = 256, arguments.student_context
    teacher_rows, student_rows = [], []
    with torch.inference_mode():
        for start in range(0, len(ids) - context, context):
            piece = ids[start : start + context]
            teacher_rows.append(model(piece[None]).logits[0, window:])
            # One window for each place: it ends where the teacher's prediction is read.
            windows = piece.unfold(0, window, 1)[1 : context - window + 1]
            student_rows.append(model(windows).logits[:, -1])
            if sum(len(rows) for rows in teacher_rows) >= arguments.positions:
                break
    positions = arguments.positions
    return torch.cat(student_rows)[:positions].clone(), torch.cat(teacher_rows)[:positions].clone()


def main() -> None:
    """Print the table as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--gguf")
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--positions", type=int, default=400)
    parser.add_argument("--student-context", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[1.0, 2.0])
    student, teacher = logits_of_both(arguments := parser.parse_args())
    for temperature in arguments.temperatures:
        for objective in EXACT:
            for k in (8, 32, 128, 512):
                for row in compare(student, teacher, objective, temperature, k):
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

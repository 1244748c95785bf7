"""Golden values: a change that should not alter the numbers must not alter these.

Run this file as a script to write them anew, when a change is meant to alter the numbers; say why in the
commit. The masks and orders must never change: jobs in progress resume with them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tide_core.losses.calm import forward_calm, reverse_bernoulli_kl, reverse_calm, tidal_calm
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.tidal import tidal_kl
from tide_core.masks.block_attention import compact_layout
from tide_core.masks.corruption import corrupt, teacher_groups
from tide_core.masks.streams import SampleKey, permutation, raw_words
from tide_core.schedules.noise import CosineNoise, LinearNoise
from tide_core.schedules.tidal import tidal_lambda, timestep_weight
from tide_core.studies.statistics import paired_bootstrap

FILE = Path(__file__).parents[1] / "golden" / "method.json"


def waves(rows: int, columns: int, phase: float) -> Tensor:
    """Numbers that any machine makes alike, without a generator."""
    grid = torch.arange(rows * columns, dtype=torch.float64).reshape(rows, columns)
    return torch.sin(grid * 0.7 + phase) * 4.0


def draws() -> dict[str, Any]:
    labels = np.array([-100] * 4 + [7] * 12)
    chunks = np.array([-1, -1, 0, 0, 0, 1, 1, 2, 3, 3, 3, 4, -1, 5, 5, 6])
    teacher = np.array([0, 1, 1, 2, 2, 3, -1, 4, 5, 6, 6])
    corruption = corrupt(labels, chunks, key=SampleKey(11, 2, 3), noise=LinearNoise())
    groups = teacher_groups(corruption, student_chunk_ids=chunks, teacher_chunk_ids=teacher, split=0.5)
    layout = compact_layout(torch.from_numpy(corruption.is_masked)[None], torch.tensor([16]), 4)
    return {
        "words": [str(word) for word in raw_words(11, 2, 3, "mask", 3)],
        "order": permutation(11, 2, 10).tolist(),
        "timestep": corruption.t,
        "masked": np.flatnonzero(corruption.is_masked).tolist(),
        "teacher_groups": groups.tolist(),
        "compact_positions": layout.source_position[0].tolist(),
    }


def schedules() -> dict[str, Any]:
    t = torch.tensor([0.001, 0.3, 0.7, 0.999], dtype=torch.float64)
    return {
        "linear_weight": LinearNoise().weight(t).tolist(),
        "cosine_alpha": CosineNoise().alpha(t).tolist(),
        "cosine_weight": CosineNoise().weight(t).tolist(),
        "lambda": tidal_lambda(0.3, t).tolist(),
        "midrange": timestep_weight(t, "midrange").tolist(),
    }


def losses() -> dict[str, Any]:
    student, teacher = waves(3, 7, 0.1), waves(3, 7, 1.3)
    share = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    lp_student, lp_teacher = waves(1, 5, 0.4)[0] - 4.0, waves(1, 5, 2.0)[0] - 4.0
    options = {"temperature": 5.0}
    return {
        "forward_kl": forward_kl(student, teacher, temperature=2.0).tolist(),
        "reverse_kl": reverse_kl(student, teacher, temperature=2.0).tolist(),
        "tidal_kl": tidal_kl(student, teacher, share, temperature=2.0).tolist(),
        "forward_calm": forward_calm(lp_student, lp_teacher, **options).tolist(),
        "tidal_calm": tidal_calm(lp_student, lp_teacher, 0.4, **options).tolist(),
        "reverse_calm": reverse_calm(lp_student, lp_teacher, **options).tolist(),
        "reverse_bernoulli_kl": reverse_bernoulli_kl(lp_student, lp_teacher, **options).tolist(),
    }


def statistics() -> dict[str, Any]:
    a, b = waves(1, 30, 0.0)[0] + 0.3, waves(1, 30, 0.2)[0]
    result = paired_bootstrap(a.numpy(), b.numpy(), weights=np.arange(1, 31), seed=7, resamples=500)
    return {"paired": [result.difference, result.low, result.high, result.p_value]}


def values() -> dict[str, Any]:
    return {"draws": draws(), "schedules": schedules(), "losses": losses(), "statistics": statistics()}


def test_draws_are_exactly_the_golden_ones() -> None:
    assert draws() == json.loads(FILE.read_text())["draws"]


@pytest.mark.parametrize("part", ["schedules", "losses", "statistics"])
def test_numbers_are_the_golden_ones(part: str) -> None:
    golden, current = json.loads(FILE.read_text())[part], values()[part]
    assert golden.keys() == current.keys()
    for name, wanted in golden.items():
        assert current[name] == pytest.approx(wanted, rel=1e-9, abs=1e-12), name


if __name__ == "__main__":
    FILE.write_text(json.dumps(values(), indent=1) + "\n")

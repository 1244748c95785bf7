"""The main path: `POST /v1/jobs` for both pipelines at once, on a real cluster, to reports and students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.running_tide import Service, job_spec
from tide.client import JobHandle
from tide_core.contracts.states import JobState
from tide_core.models.student import BlockDiffusionStudent
from tide_core.samplers.block import sample
from tide_core.samplers.settings import SamplerSettings
from workers.evaluation.report import read_sequences
from workers.teachers.tiny import write_tiny_teacher

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 12


def evaluated_spec(folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    evaluation = {
        "timesteps": 2,
        "exact_match": {
            "source": {"location": str(folder / "rows.jsonl")},
            "limit": 4,
            "max_new_tokens": 16,
        },
    }
    spec = job_spec(folder, steps=STEPS, evaluation=evaluation, **changes)
    spec["data"]["held_out"] = {"fraction": 0.3}
    spec["hyperparameters"]["learning_rate"] = 1e-2
    return spec


def test_two_jobs_end_with_a_report_and_a_student(tide: Service, tmp_path: Path) -> None:
    shared = evaluated_spec(tmp_path / "shared")
    moe = write_tiny_teacher(tmp_path / "moe", "llada2_moe")
    cross = evaluated_spec(tmp_path / "cross", objective="tide_cross", pipeline="cross_tokenizer")
    cross["teacher"] = {"model": str(moe)}
    posted = {name: tide.client.jobs.create(spec) for name, spec in (("shared", shared), ("cross", cross))}
    for name, job in posted.items():
        ended = job.wait(240)
        assert ended.status is JobState.SUCCEEDED, (name, ended.error)
        _check_events(ended)
        _check_metrics(ended)
        _check_report(Path(ended.model.location).parent, name)
        _check_student(Path(ended.model.location))


def _check_events(job: JobHandle) -> None:
    kinds = [event.type for event in job.events()]
    for kind in ("job.queued", "job.preparing", "job.running", "job.evaluating", "job.succeeded"):
        assert kinds.count(kind) == 1, kinds
    assert any(kind.endswith("attested") for kind in kinds), kinds


def _check_metrics(job: JobHandle) -> None:
    series = {entry.name: entry for entry in job.metrics().data}
    assert series["loss"].steps == list(range(1, STEPS + 1))
    assert len(series["held_out/nelbo"].values) == 1
    assert {"teacher_wait_seconds", "gradient_norm", "mask_rate"} <= set(series)


def _check_report(folder: Path, name: str) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert set(report["models"]) == {"start", "student", "teacher"}
    student, start = report["models"]["student"], report["models"]["start"]
    assert student["nelbo_per_token"] < start["nelbo_per_token"]
    divergence = "reverse_kl_to_teacher" if name == "shared" else "reverse_chunk_kl_to_teacher"
    assert {divergence, "masked_token_accuracy", "content_nelbo_per_byte"} <= set(student)
    assert student["exact_match"]["count"] == 4
    sequences = read_sequences(Path(report["sequences"]).read_bytes())
    assert len(sequences["student/nll"]) == report["held_out"]["sequences"] > 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["training"]["steps"] == STEPS
    assert manifest["teacher_fingerprint"]


def _check_student(folder: Path) -> None:
    """Loads by our sampler and by plain transformers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    student = BlockDiffusionStudent.from_pretrained(folder)
    settings = SamplerSettings(max_new_tokens=8, block_size=16, pads_prompt=False)
    assert len(sample(student, [[1, 2, 3]], settings).ids) == 1
    theirs = Qwen3ForCausalLM.from_pretrained(
        folder, config=Qwen3Config.from_pretrained(folder), dtype=torch.float32
    )
    ids, mask = torch.arange(6)[None], torch.ones(1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=ids).logits
        torch.testing.assert_close(student.lm_head(student(ids, mask, ids)), expected, rtol=1e-4, atol=1e-4)

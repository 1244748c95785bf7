"""What every evaluator must do, and what a new one touches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_runs import BLOCK, STUDENT_CONFIG, tiny_samples, tiny_spec
from tide_core.contracts.figures import Measure
from tide_core.contracts.job import DataSource, EvaluationSpec, ExactMatchTask
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.scores import Layout
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import phase_needs_teacher
from tide_core.evaluation.evaluator import START, STUDENT, TEACHER, Evaluator, Scene, name_measures
from tide_core.evaluation.registry import EVALUATORS, evaluators_of
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.local_teacher import LocalTeacher
from workers.teachers.tiny import MASK_ID, VOCAB_SIZE, write_tiny_teacher

ROOT = Path(__file__).resolve().parents[3]
MODELS = {START, STUDENT, TEACHER}


def exact_match(location: str = "/prompts.jsonl") -> ExactMatchTask:
    return ExactMatchTask(source=DataSource(location=location), max_new_tokens=BLOCK, limit=3)


def make_scene(pipeline: Pipeline, folder: Path, prompts: Path, **options: Any) -> Scene:
    """Two students and a teacher over tiny samples, in one process."""
    teacher_folder = write_tiny_teacher(folder / "teacher", "wedlm", seed=3)
    teacher = LocalTeacher.load(teacher_folder)
    config = STUDENT_CONFIG | {
        "model_type": "a2d-qwen3",
        "vocab_size": VOCAB_SIZE,
        "mask_token_id": MASK_ID,
        "block_size": BLOCK,
    }
    evaluation = EvaluationSpec(timesteps=2, exact_match=exact_match(str(prompts)), **options)
    return Scene(
        spec=tiny_spec(Variant.NONE, pipeline, evaluation=evaluation),
        students={
            name: BlockDiffusionStudent.from_config(config, seed=seed)
            for seed, name in enumerate((START, STUDENT))
        },
        student_folder=teacher_folder,
        held_out=tiny_samples(pipeline, 4),
        teacher=TeacherAccess(teacher, teacher.head, Layout.BIDIRECTIONAL, 60),
        teacher_folder=teacher_folder,
    )


@pytest.fixture
def prompts(write_lines: Callable[..., Path]) -> Path:
    return write_lines([{"prompt": f"{n}+1", "response": str(n + 1)} for n in range(4)])


def test_each_has_a_name_of_its_own() -> None:
    assert all(isinstance(evaluator, Evaluator) for evaluator in EVALUATORS)
    assert len({evaluator.name for evaluator in EVALUATORS}) == len(EVALUATORS)


def test_the_lease_of_an_evaluation_is_what_its_evaluators_ask() -> None:
    flags = (False, True)
    for enabled, kl, baselines, has_task in itertools.product(flags, flags, flags, flags):
        evaluation = EvaluationSpec(
            enabled=enabled,
            teacher_kl=kl,
            baselines=baselines,
            exact_match=exact_match() if has_task else None,
        )
        spec = tiny_spec(Variant.NONE, Pipeline.CROSS_TOKENIZER, evaluation=evaluation)
        asks = any(evaluator.asks_teacher(spec) for evaluator in evaluators_of(spec))
        assert phase_needs_teacher(spec, Phase.EVALUATE) == asks
        assert bool(evaluators_of(spec)) == enabled


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda evaluator: evaluator.name)
@pytest.mark.parametrize("pipeline", list(Pipeline))
def test_findings_are_json_and_one_number_an_item(
    evaluator: Evaluator, pipeline: Pipeline, tmp_path: Path, prompts: Path
) -> None:
    seen: list[tuple[int, int]] = []
    scene = make_scene(pipeline, tmp_path, prompts)
    findings = evaluator.run(scene, lambda done, total: seen.append((done, total)))
    assert set(findings.figures) == set(findings.columns) == MODELS
    json.dumps([dict(findings.figures), dict(findings.facts)])
    for columns in findings.columns.values():
        assert len({values.shape for values in columns.values()}) == 1
        assert all(values.dtype == np.float64 for values in columns.values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert all(np.isfinite(value) for value in name_measures(findings.measures).values())


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda evaluator: evaluator.name)
def test_without_a_teacher_the_students_are_measured_alone(
    evaluator: Evaluator, tmp_path: Path, prompts: Path
) -> None:
    scene = make_scene(Pipeline.CROSS_TOKENIZER, tmp_path, prompts)
    alone = Scene(scene.spec, scene.students, scene.student_folder, scene.held_out)
    assert set(evaluator.run(alone).figures) == MODELS - {TEACHER}


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda evaluator: evaluator.name)
def test_without_baselines_the_teacher_is_left_out(
    evaluator: Evaluator, tmp_path: Path, prompts: Path
) -> None:
    scene = make_scene(Pipeline.SHARED_TOKENIZER, tmp_path, prompts, baselines=False)
    findings = evaluator.run(scene)
    assert TEACHER not in findings.figures
    assert TEACHER not in findings.columns


def test_every_measure_is_found_by_an_evaluator(tmp_path: Path, prompts: Path) -> None:
    torch.set_num_threads(1)
    found: set[Measure] = set()
    for pipeline in Pipeline:
        scene = make_scene(pipeline, tmp_path / pipeline, prompts)
        for evaluator in EVALUATORS:
            found |= set(evaluator.run(scene).measures)
    assert found == set(Measure)


def test_every_evaluator_is_tested_and_its_options_are_documented() -> None:
    page = (ROOT / "docs/job-spec.md").read_text()
    for evaluator in EVALUATORS:
        assert (ROOT / f"tide_core/evaluation/{evaluator.name}.py").is_file()
        assert (ROOT / f"tests/tide_core/evaluation/test_{evaluator.name}.py").is_file()
    for option in EvaluationSpec.model_fields:
        assert f"`{option}`" in page

"""Real Ray Train against a real teacher pool: one trainer or two give the same losses; the export loads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tide_core.contracts.job import (
    DataSource,
    DataSpec,
    EvaluationSpec,
    ExactMatchTask,
    HeldOut,
    Hyperparameters,
    JobSpec,
    Resources,
    StudentSpec,
    TeacherSpec,
    resolve,
)
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import (
    AttemptBrief,
    CheckpointSaved,
    Failed,
    Finished,
    Metrics,
    TeacherAttested,
)
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import TeacherLease, TeacherPool, pool_for
from tide_core.data.dataset_preparation import serial_map
from workers.evaluation.report import read_sequences
from workers.main import phase_function, run_phase
from workers.preparation.driver import prepare_for_job
from workers.reporting.fake_control import FakeControlPlane
from workers.reporting.recording import RecordingReporter
from workers.teachers.tiny import VOCAB_SIZE, write_tiny_teacher

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

STUDENT: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "eos_token_id": 256,
}


class Workplace:
    """A storage folder, a data file and a teacher, with jobs prepared on them."""

    def __init__(self, folder: Path, control: FakeControlPlane | None = None) -> None:
        self.folder = folder
        self.teacher = write_tiny_teacher(folder / "teacher", "llada2_moe", seed=2)
        rows = [{"prompt": f"count {n}", "response": f"{n}, {n + 1}, {n + 2}."} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def brief(
        self, job_id: str, *, workers: int, sharding: Literal["none", "fsdp"] = "none", **hyper: Any
    ) -> AttemptBrief:
        settings: dict[str, Any] = {
            "max_steps": 6,
            "global_batch_size": 6,
            "micro_batch_size": 2,
            "learning_rate": 1e-2,
            "precision": "float32",
        }
        spec = resolve(
            JobSpec(
                teacher=TeacherSpec(model=str(self.teacher)),
                student=StudentSpec(config=STUDENT, tokenizer=str(self.teacher), block_size=8),
                objective=Variant.TIDE_CROSS,
                data=DataSpec(
                    sources=(DataSource(location=str(self.folder / "rows.jsonl")),),
                    held_out=HeldOut(fraction=0.1),
                    student_length=64,
                ),
                hyperparameters=Hyperparameters(**(settings | hyper)),
                evaluation=EvaluationSpec(
                    timesteps=2,
                    every_steps=3,
                    exact_match=ExactMatchTask(
                        source=DataSource(location=str(self.folder / "rows.jsonl")),
                        limit=6,
                        max_new_tokens=12,
                    ),
                ),
                resources=Resources(
                    student_workers=workers, sharding=sharding, cpus_per_worker=0.5, cpus_per_teacher=0.5
                ),
            ),
            pipeline=Pipeline.CROSS_TOKENIZER,
        )
        brief = AttemptBrief(
            job_id=job_id, attempt=1, phase=Phase.TRAIN, spec=spec, storage=str(self.folder / "storage")
        )
        report = prepare_for_job(brief, RecordingReporter(), serial_map)
        lease = TeacherLease(application=pool_for(spec).application)
        return brief.model_copy(update={"prepared": report.location, "teacher": lease})

    def pool(self) -> TeacherPool:
        return pool_for(self.brief("pool", workers=1).spec)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="module")
def control(workplace: Workplace) -> Iterator[FakeControlPlane]:
    """A control plane, and a cluster with the teacher's pool whose workers know it."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    before = dict(os.environ)
    with FakeControlPlane(workplace.brief("first", workers=1)) as control:
        os.environ.update(control.environment)
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=128 * 2**20,
            runtime_env={"env_vars": control.environment},
        )
        pool = workplace.pool()
        application = {
            "name": pool.application,
            "route_prefix": None,
            "import_path": "workers.teachers.app:build",
            "args": pool.model_dump(mode="json"),
        }
        try:
            serve.start(proxy_location="Disabled")
            client = _get_global_client()
            client.deploy_apps(
                ServeDeploySchema.model_validate({"applications": [application]}), _blocking=True
            )
            yield control
        finally:
            serve.shutdown()
            ray.shutdown()
            os.environ.clear()
            os.environ.update(before)


def run(control: FakeControlPlane, brief: AttemptBrief) -> Finished | Failed:
    control.assign(brief)
    return run_phase(brief, phase_function(brief.phase))


def test_one_trainer_and_two_give_the_same_losses(control: FakeControlPlane, workplace: Workplace) -> None:
    curves, norms, probes = {}, {}, {}
    forms: tuple[tuple[str, int, Literal["none", "fsdp"]], ...] = (
        ("w1", 1, "none"),
        ("w2", 2, "none"),
        ("parts", 2, "fsdp"),
    )
    for name, workers, sharding in forms:
        brief = workplace.brief(name, workers=workers, sharding=sharding)
        last_word = run(control, brief)
        assert isinstance(last_word, Finished), last_word
        assert last_word.result["steps"] == 6
        curves[name] = control.series("loss")
        norms[name] = control.series("gradient_norm")
        probes[name] = control.series("held_out/nelbo")
        trained = [metrics.step for metrics in control.of_type(Metrics) if "loss" in metrics.values]
        assert trained == [1, 2, 3, 4, 5, 6]
        assert control.of_type(TeacherAttested)
        assert len(probes[name]) == 2
    for name in ("w2", "parts"):
        assert curves[name] == pytest.approx(curves["w1"], rel=1e-4)
        # Adam hardly notices a gradient that is twice too small; its norm tells.
        assert norms[name] == pytest.approx(norms["w1"], rel=1e-3)
        assert probes[name] == pytest.approx(probes["w1"], rel=1e-4)
        _export_loads(Path(workplace.brief(name, workers=2).folder.root))


def _export_loads(folder: Path) -> None:
    """Plain transformers gives the same logits; the manifest says what was run."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from tide_core.models.student import BlockDiffusionStudent

    model_folder = folder / "model"
    assert not any(model_folder.glob("*.bin"))
    config = Qwen3Config.from_pretrained(model_folder)
    theirs = Qwen3ForCausalLM.from_pretrained(model_folder, config=config, dtype=torch.float32)
    ours = BlockDiffusionStudent.from_pretrained(model_folder)
    ids = torch.arange(12)[None]
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    positions = torch.arange(12)[None]
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(ours.lm_head(ours(ids, mask, positions)), expected, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert tokenizer.mask_token == "<|mask|>"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"]["variant"] == "tide_cross"
    assert manifest["teacher_fingerprint"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert "tide_cross" in (model_folder / "README.md").read_text()


def test_the_evaluation_of_a_trained_student(control: FakeControlPlane, workplace: Workplace) -> None:
    """Needs the student that the test before has trained."""
    brief = workplace.brief("w1", workers=1).model_copy(update={"phase": Phase.EVALUATE})
    last_word = run(control, brief)
    assert isinstance(last_word, Finished), last_word
    report = last_word.result
    assert json.loads(Path(brief.folder.report).read_text()) == report
    assert set(report["models"]) == {"start", "student", "teacher"}
    start, student = report["models"]["start"], report["models"]["student"]
    assert student["nelbo_per_token"] < start["nelbo_per_token"], (
        "six steps teach the closing tokens at least"
    )
    assert {"reverse_chunk_kl_to_teacher", "content_nelbo_per_byte", "masked_token_accuracy"} <= set(student)
    assert all(figures["exact_match"]["count"] == 6 for figures in report["models"].values())
    assert report["sizes"]["teacher_parameters"] > 0
    assert report["speeds"]["seconds_per_step"] > 0
    sequences = read_sequences(Path(report["sequences"]).read_bytes())
    ratio = sequences["student/nll"].sum() / sequences["student/tokens"].sum()
    assert ratio == pytest.approx(student["nelbo_per_token"])
    assert control.series("held_out/nelbo") == [student["nelbo_per_token"]]


def test_an_error_of_a_trainer_keeps_its_code(control: FakeControlPlane, workplace: Workplace) -> None:
    """A learning rate that blows up ends as what it is, not as a crash."""
    brief = workplace.brief("blown", workers=1, learning_rate=1e30, gradient_clip_norm=None, warmup_ratio=0.0)
    last_word = run(control, brief)
    assert isinstance(last_word, Failed)
    assert last_word.code == "non_finite_loss"
    assert not last_word.retryable
    assert "Step" in last_word.message
    assert not any(saved.is_export for saved in control.of_type(CheckpointSaved))

"""Whole runs in this process: variants, resume, micro-batches, stopping, NaN."""

from __future__ import annotations

import math
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import BLOCK, Bench, change, tiny_samples, tiny_spec, tiny_student
from tide_core.contracts.errors import CheckpointError, NonFiniteError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import (
    CalmTerm,
    ChunkFilter,
    CompDemoContext,
    Pipeline,
    Variant,
    needs_teacher,
)
from tide_core.contracts.reporting import CheckpointDeleted, CheckpointSaved, Metrics, Progress
from tide_core.data.batches import BatchPlan, Visit
from tide_core.training.digest import spec_digest
from tide_core.training.distiller import draw_step
from workers.reporting.recording import RecordingReporter
from workers.scores.cache import CachingTransport, ScoreCache
from workers.student.loop import train

A, B = Pipeline.CROSS_TOKENIZER, Pipeline.SHARED_TOKENIZER
COMBINATIONS = [(variant, pipeline) for pipeline in (A, B) for variant in Variant]


@pytest.mark.parametrize(("variant", "pipeline"), COMBINATIONS)
def test_every_variant_trains_in_both_pipelines(bench: Bench, variant: Variant, pipeline: Pipeline) -> None:
    spec = tiny_spec(variant, pipeline, steps=3)
    reporter, run, outcome = bench.train(spec)
    assert outcome.state.step == 3
    losses = reporter.series("loss")
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    terms = {term.type for term in spec.objective}
    metrics = reporter.of_type(Metrics)[0].values
    assert {name.removeprefix("loss/") for name in metrics if name.startswith("loss/")} == terms
    assert metrics["loss"] == pytest.approx(sum(metrics[f"loss/{term}"] for term in terms), rel=1e-5)
    assert 0 < metrics["mask_rate"] < 1
    assert ("lambda" in metrics) == (variant is Variant.TIDE_SHARED)
    assert {"gradient_norm", "learning_rate", "tokens_per_second", "teacher_wait_seconds"} <= set(metrics)
    asked = run.transport.statistics().requests  # type: ignore[union-attr]
    assert (asked > 0) == needs_teacher(spec.objective)


@pytest.mark.parametrize(("variant", "pipeline"), [c for c in COMBINATIONS if c[0] is not Variant.NONE])
def test_the_teachers_term_moves_the_student(bench: Bench, variant: Variant, pipeline: Pipeline) -> None:
    """With the cross-entropy at weight 0 only the teacher can have changed the weights."""
    named = tiny_spec(variant, pipeline)
    terms = [
        term.model_copy(update={"weight": 0.0 if term.type == "cross_entropy" else 1.0})
        for term in named.objective
    ]
    spec = tiny_spec(terms, pipeline, steps=2, teacher_context=named.teacher_context)
    reporter, run, _ = bench.train(spec)
    assert reporter.series("gradient_norm")[0] > 1e-6
    before = tiny_student().layers[0].state_dict()
    after = run.student.layers[0].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("pipeline", [A, B])
def test_the_control_sees_the_same_masks(bench: Bench, pipeline: Pipeline) -> None:
    rates = []
    for number, variant in enumerate(Variant):
        reporter, _, _ = bench.train(tiny_spec(variant, pipeline, steps=3), name=f"run-{number}")
        rates.append(reporter.series("mask_rate"))
    assert all(rate == rates[0] for rate in rates)


def test_training_without_a_teacher_learns(bench: Bench) -> None:
    samples = tiny_samples(A, 4)
    reporter, _, _ = bench.train(tiny_spec(Variant.NONE, A, steps=100), samples=samples)
    losses = reporter.series("loss")
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize(("variant", "pipeline"), COMBINATIONS)
def test_micro_batches_do_not_change_the_losses(bench: Bench, variant: Variant, pipeline: Pipeline) -> None:
    whole, _, _ = bench.train(tiny_spec(variant, pipeline, steps=3, micro=4), name="whole")
    cut, _, _ = bench.train(tiny_spec(variant, pipeline, steps=3, micro=1), name="cut")
    assert cut.series("loss") == pytest.approx(whole.series("loss"), rel=1e-4)
    assert cut.series("gradient_norm") == pytest.approx(whole.series("gradient_norm"), rel=1e-3)


@pytest.mark.parametrize(("variant", "pipeline"), [(Variant.TIDE_CROSS, A), (Variant.TIDE_SHARED, B)])
def test_the_token_budget_does_not_change_the_losses(
    bench: Bench, variant: Variant, pipeline: Pipeline
) -> None:
    def spec(tokens: int | None) -> ResolvedJobSpec:
        hyper = {"micro_batch_tokens": tokens}
        return tiny_spec(variant, pipeline, steps=4, batch=12, micro=16, every=2, hyper=hyper)

    whole, run, _ = bench.train(spec(None), name="whole")
    assert len(draw_step(run.distillation, 0).batches) == 1
    for tokens in (64, 100, 300):
        reporter, bounded, _ = bench.train(spec(tokens), name=f"budget-{tokens}")
        batches = draw_step(bounded.distillation, 0).batches
        assert max(batch.input_ids.numel() for batch in batches) <= tokens
        assert len(batches) > 1
        assert reporter.series("loss") == pytest.approx(whole.series("loss"), rel=1e-5)
    # A state of one budget goes on under another.
    shutil.rmtree(run.store.list_states()[-1].location)
    resumed, _, _ = bench.train(spec(80), name="whole", student=tiny_student(seed=99))
    assert resumed.series("loss") == pytest.approx(whole.series("loss")[2:], rel=1e-5)


def test_sequences_of_like_length_share_a_forward(bench: Bench) -> None:
    samples = tiny_samples(A, 30)
    padded = []
    for micro in (1, 3, 30):
        spec = tiny_spec(Variant.NONE, A, steps=1, batch=30, micro=micro)
        reporter, _, _ = bench.train(spec, samples=samples, name=f"micro-{micro}")
        padded += reporter.series("padding_ratio")
    assert padded[0] < 0.01, "alone, only a sequence without a masked token takes a place"
    assert padded[0] < padded[1] < padded[2] / 2


@pytest.mark.parametrize(
    ("variant", "pipeline"),
    [(Variant.NONE, A), (Variant.NONE, B), (Variant.TIDE_CROSS, A), (Variant.TIDE_SHARED, B)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    bench: Bench, variant: Variant, pipeline: Pipeline
) -> None:
    """To the bit without a teacher; a teacher's rounding depends on which requests share a forward."""
    spec = tiny_spec(variant, pipeline, steps=6, every=3)
    whole, finished, _ = bench.train(spec, name="whole")

    class Interrupted(RecordingReporter):
        def send(self, body: object) -> None:
            super().send(body)  # type: ignore[arg-type]
            if isinstance(body, Metrics) and body.step == 5:
                raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError, match="gone"):
        bench.train(spec, name="broken", reporter=Interrupted())
    # Fresh weights: everything must come from the saved state.
    again, resumed, _ = bench.train(spec, name="broken", student=tiny_student(seed=99))
    assert [m.step for m in again.of_type(Metrics)] == [4, 5, 6]
    tolerance = 0.0 if variant is Variant.NONE else 1e-5
    assert again.series("loss") == pytest.approx(whole.series("loss")[3:], rel=tolerance, abs=0.0)
    for name, weight in finished.student.state_dict().items():
        torch.testing.assert_close(
            weight, resumed.student.state_dict()[name], rtol=0.0, atol=100 * tolerance, msg=name
        )


class WatchedPlan(BatchPlan):
    """A plan that remembers which threads drew a step from it."""

    def __init__(self, plan: BatchPlan) -> None:
        vars(self).update(vars(plan))
        self.threads: list[str] = []

    def worker_share(self, step: int, worker: int, workers: int) -> list[Visit]:
        self.threads.append(threading.current_thread().name)
        return super().worker_share(step, worker, workers)


def test_later_steps_are_drawn_while_one_trains(bench: Bench) -> None:
    """Also where no teacher is asked: data loading is off the path of the step."""
    run = bench.run(tiny_spec(Variant.NONE, A, steps=6))
    plan = WatchedPlan(run.distillation.plan)

    class Waiting(RecordingReporter):
        def send(self, body: object) -> None:
            super().send(body)  # type: ignore[arg-type]
            if isinstance(body, Metrics) and body.step == 1:
                # The trainer stands still here; only another thread can draw.
                deadline = time.monotonic() + 30
                while len(plan.threads) < 3 and time.monotonic() < deadline:
                    time.sleep(0.01)
                self.ahead = len(plan.threads)

    reporter = Waiting()
    train(replace(change(run, plan=plan), reporter=reporter, transport=None))
    assert reporter.ahead == 3, "prefetch_steps ahead, and no further"
    assert threading.main_thread().name not in plan.threads


def test_a_wish_to_stop_saves_and_ends(bench: Bench) -> None:
    class Stopping(RecordingReporter):
        def send(self, body: object) -> None:
            super().send(body)  # type: ignore[arg-type]
            if isinstance(body, Metrics) and body.step == 2:
                self.request_stop()

    spec = tiny_spec(Variant.NONE, A, steps=50)
    reporter, _, outcome = bench.train(spec, reporter=Stopping())
    assert outcome.is_stopped
    assert outcome.state.step == 2
    assert [saved.step for saved in reporter.of_type(CheckpointSaved)] == [2]
    again, _, rest = bench.train(spec, student=tiny_student(seed=1))
    assert again.of_type(Metrics)[0].step == 3
    assert not rest.is_stopped


def test_only_the_newest_states_are_kept(bench: Bench) -> None:
    reporter, run, _ = bench.train(tiny_spec(Variant.NONE, A, steps=8, every=2))
    assert [saved.step for saved in reporter.of_type(CheckpointSaved)] == [2, 4, 6, 8]
    assert [gone.step for gone in reporter.of_type(CheckpointDeleted)] == [2, 4]
    assert [saved.step for saved in run.store.list_states()] == [6, 8]


def test_a_non_finite_loss_ends_the_run_and_keeps_the_last_state(bench: Bench) -> None:
    spec = tiny_spec(Variant.NONE, A, steps=6, every=2)

    class Poisoning(RecordingReporter):
        student = tiny_student()

        def send(self, body: object) -> None:
            super().send(body)  # type: ignore[arg-type]
            if isinstance(body, Metrics) and body.step == 3:
                with torch.no_grad():
                    self.student.norm.weight.fill_(float("nan"))

    poisoning = Poisoning()
    run = bench.run(spec, student=poisoning.student, reporter=poisoning)
    with pytest.raises(NonFiniteError, match="Step 3") as caught:
        train(run)
    assert caught.value.code == "non_finite_loss"
    assert [saved.step for saved in run.store.list_states()] == [2]
    student = tiny_student()
    state = run.store.restore(student, torch.optim.AdamW(student.parameters()), run.spec_digest)
    assert state is not None
    assert state.step == 2


def test_the_states_of_another_spec_are_refused(bench: Bench) -> None:
    bench.train(tiny_spec(Variant.NONE, A, steps=2))
    with pytest.raises(CheckpointError) as caught:
        bench.train(tiny_spec(Variant.NONE, A, steps=3))
    assert caught.value.code == "foreign_checkpoint"


def test_pace_and_placement_leave_the_states_valid() -> None:
    spec = tiny_spec(Variant.NONE, A, steps=2)
    assert spec.teacher is not None
    paced = spec.model_copy(
        update={
            "teacher": spec.teacher.model_copy(update={"compile": True}),
            "hyperparameters": spec.hyperparameters.model_copy(update={"micro_batch_size": 1}),
            "resources": spec.resources.model_copy(update={"prefetch_steps": 5}),
        }
    )
    assert spec_digest(paced, "data") == spec_digest(spec, "data")
    other = spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"quantisation": "int8"})})
    assert spec_digest(other, "data") != spec_digest(spec, "data")
    assert spec_digest(spec, "other data") != spec_digest(spec, "data")


def test_a_damaged_state_is_passed_over(bench: Bench) -> None:
    spec = tiny_spec(Variant.NONE, A, steps=6, every=2)
    whole, run, _ = bench.train(spec)
    last = Path(run.store.list_states()[-1].location)
    content = bytearray((last / "model.safetensors").read_bytes())
    content[:8] = b"\xff" * 8
    (last / "model.safetensors").write_bytes(content)
    again, _, _ = bench.train(spec)
    assert [m.step for m in again.of_type(Metrics)] == [5, 6]
    assert again.series("loss") == whole.series("loss")[4:]


def test_comp_demo_asks_about_every_masked_token_once(bench: Bench) -> None:
    spec = tiny_spec(Variant.TIDE_SHARED, B, steps=1)
    assert isinstance(spec.teacher_context, CompDemoContext)
    _, run, _ = bench.train(spec)
    assert run.distillation.recipe.split == spec.teacher_context.ratio
    assert run.distillation.recipe.block_size == BLOCK


def test_progress_ends_at_the_last_step(bench: Bench) -> None:
    reporter, _, _ = bench.train(tiny_spec(Variant.NONE, A, steps=3))
    last = reporter.of_type(Progress)[-1]
    assert (last.completed, last.total, last.eta_seconds) == (3, 3, 0.0)


def with_top_k(spec: ResolvedJobSpec, k: int) -> ResolvedJobSpec:
    return spec.model_copy(update={"teacher": spec.teacher.model_copy(update={"top_k": k})})


@pytest.mark.parametrize("variant", [Variant.BASELINE, Variant.TIDE_CROSS, Variant.TIDE_SHARED])
def test_top_k_of_the_whole_vocabulary_trains_as_hidden_states_do(bench: Bench, variant: Variant) -> None:
    spec = tiny_spec(variant, B, steps=3)
    exact, _, _ = bench.train(spec, name="exact")
    sparse, run, _ = bench.train(with_top_k(spec, 1000), name="sparse")
    assert run.distillation.recipe.top_k is not None
    # Logits in float16 on one side, hidden states in bfloat16 on the other.
    assert sparse.series("loss") == pytest.approx(exact.series("loss"), rel=0.01)
    assert sparse.series("teacher_tail_mass/2") == [0.0] * 3
    few, _, _ = bench.train(with_top_k(spec, 4), name="few")
    assert all(0.5 < share < 1.0 for share in few.series("teacher_tail_mass/2"))
    assert few.series("loss")[0] < exact.series("loss")[0], "a lower bound of each divergence"


def test_a_top_k_trainer_needs_no_head(bench: Bench) -> None:
    run = bench.run(with_top_k(tiny_spec(Variant.TIDE_SHARED, B, steps=1), 8))
    assert train(change(run, teacher_head=None)).state.step == 1


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_chunk_filter_works_in_a_run(bench: Bench, threshold: float) -> None:
    term = CalmTerm(chunk_filter=ChunkFilter(debias=False, threshold=threshold))
    plain, _, _ = bench.train(tiny_spec([CalmTerm()], A, steps=1), name="plain")
    filtered, _, _ = bench.train(tiny_spec([term], A, steps=1), name="filtered")
    if threshold == 0.0:
        assert filtered.series("loss") == pytest.approx(plain.series("loss"), rel=1e-5)
    else:
        assert 0.0 <= filtered.series("loss")[0] < plain.series("loss")[0]
    debiased = CalmTerm(chunk_filter=ChunkFilter(threshold=threshold))
    reporter, _, _ = bench.train(tiny_spec([debiased], A, steps=1), name="debiased")
    assert reporter.series("loss")[0] != pytest.approx(plain.series("loss")[0], rel=1e-3)


def test_what_the_teacher_cost_is_reported(bench: Bench) -> None:
    reporter, _, outcome = bench.train(tiny_spec(Variant.TIDE_CROSS, A, steps=2))
    values = reporter.of_type(Metrics)[0].values
    assert values["teacher_bytes"] > 0
    assert values["teacher_compute_seconds"] > 0
    assert values["teacher_queue_seconds"] >= 0
    assert values["teacher_cache_hit_ratio"] == 0.0
    assert outcome.speeds.cache_hit_ratio == 0.0


def test_a_second_job_over_the_same_data_asks_the_teacher_nothing(bench: Bench, tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores", 10**7)
    asked = []
    for number, variant in enumerate((Variant.BASELINE, Variant.TIDE_CROSS)):
        run = bench.run(tiny_spec(variant, A, steps=3), name=f"cached-{number}")
        before = bench.transport.statistics().requests
        outcome = train(replace(run, transport=CachingTransport(bench.transport, cache)))
        asked.append((bench.transport.statistics().requests - before, outcome.speeds.cache_hit_ratio))
    assert asked[0][0] > 0
    assert asked[0][1] == 0.0
    assert asked[1] == (0, 1.0)

"""A student in parts on two trainers: the losses, states and exports of one that lies whole on each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_runs import BLOCK, STUDENT_CONFIG, Bench, change, make_bench, tiny_spec
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.job import EvaluationSpec, ResolvedJobSpec
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import Metrics
from tide_core.models.student import BlockDiffusionStudent
from tide_core.training.collective import Alone, ProcessGroup
from tide_core.training.distiller import draw_step
from tide_core.training.sharding import gather_student, gather_whole, is_sharded, place_like, shard
from workers.reporting.recording import RecordingReporter
from workers.student.loop import Run, train

pytestmark = pytest.mark.slow

TRAINERS = 2
STEPS = 6
SPECS: dict[str, dict[str, Any]] = {
    # Five sequences on two trainers in forwards of at most 64 positions: unequal numbers of forwards.
    "budget": {"hyper": {"micro_batch_tokens": 64}, "micro": 8},
    "untied": {"micro": 2},
    "checkpointing": {"hyper": {"activation_checkpointing": True}, "micro": 2},
}


def spec_of(name: str) -> ResolvedJobSpec:
    variant, pipeline = (
        (Variant.TIDE_CROSS, Pipeline.CROSS_TOKENIZER)
        if name == "untied"
        else (Variant.TIDE_SHARED, Pipeline.SHARED_TOKENIZER)
    )
    evaluation = EvaluationSpec(every_steps=2)
    return tiny_spec(variant, pipeline, steps=STEPS, batch=5, every=3, evaluation=evaluation, **SPECS[name])


def fresh_student(name: str, seed: int = 5) -> BlockDiffusionStudent:
    config = STUDENT_CONFIG | {"model_type": "a2d-qwen3", "block_size": BLOCK}
    return BlockDiffusionStudent.from_config(config | {"tie_word_embeddings": name != "untied"}, seed=seed)


@torch.no_grad()
def probe(student: BlockDiffusionStudent) -> dict[str, float]:
    """Reads the head after the forward, as the held-out measurement does."""
    hidden = student(torch.arange(12)[None])
    return {"held_out/nelbo": float((hidden @ student.lm_head.weight.T).logsumexp(-1).mean())}


def finish(run: Run, folder: Path, rank: int = 0) -> None:
    """Train, and write what came out of it."""
    train(run)
    student = gather_student(run.student, rank)
    assert (student is None) == (rank > 0 and is_sharded(run.student))
    if rank or student is None or run.reporter is None:
        return
    assert isinstance(run.reporter, RecordingReporter)
    student.save_pretrained(folder / "model")
    series = {name: run.reporter.series(name) for name in ("loss", "gradient_norm", "held_out/nelbo")}
    steps = [m.step for m in run.reporter.of_type(Metrics) if "loss" in m.values]
    (folder / "result.json").write_text(json.dumps(series | {"steps": steps}))


def trainer(rank: int, folder: Path) -> None:
    """One of several processes; every arm of the comparison one after the other."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=TRAINERS
    )
    bench, engine = make_bench(folder / f"rank-{rank}")
    try:
        for name in SPECS:
            arm(bench, rank, folder, name, "none")
            arm(bench, rank, folder, name, "fsdp")
            arm(bench, rank, folder, name, "fsdp", suffix="-resumed", seed=99)
        arm(bench, rank, folder, "budget", "fsdp", suffix="-bfloat16", compute=torch.bfloat16)
        arm(bench, rank, folder, "budget", "none", suffix="-bfloat16", compute=torch.bfloat16)
    finally:
        bench.transport.close()
        engine.close()
        torch.distributed.destroy_process_group()


def arm(
    bench: Bench,
    rank: int,
    folder: Path,
    name: str,
    sharding: str,
    *,
    suffix: str = "",
    seed: int = 5,
    compute: torch.dtype | None = None,
) -> None:
    student = fresh_student(name, seed)
    if sharding == "fsdp":
        shard(student, torch.device("cpu"), compute)
    place = folder / f"{name}-{sharding}{suffix}"
    run = bench.run(
        spec_of(name),
        student=student,
        collective=ProcessGroup(torch.device("cpu")),
        reporter=RecordingReporter() if rank == 0 else None,
        name=place.name,
    )
    # Of all trainers the same; the data lies in a folder of each.
    run.store.root = str(place / "states")
    finish(replace(change(run, autocast=compute), probe=probe), place, rank)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two trainers made of each arm, and one trainer alone before and after them."""
    folder = tmp_path_factory.mktemp("sharding")
    bench, engine = make_bench(folder / "alone")
    try:
        for name in SPECS:
            alone(bench, folder, name, "alone")
            leave_half_way(folder / f"{name}-alone", folder / f"{name}-fsdp-resumed")
        torch.multiprocessing.spawn(trainer, (folder,), nprocs=TRAINERS)
        for name in SPECS:
            leave_half_way(folder / f"{name}-fsdp", folder / f"{name}-resumed-alone")
            alone(bench, folder, name, "resumed-alone", seed=99)
        yield folder
    finally:
        bench.transport.close()
        engine.close()


def alone(bench: Bench, folder: Path, name: str, suffix: str, seed: int = 5) -> None:
    place = folder / f"{name}-{suffix}"
    run = bench.run(
        spec_of(name), student=fresh_student(name, seed), reporter=RecordingReporter(), name=place.name
    )
    run.store.root = str(place / "states")
    place.mkdir(exist_ok=True)
    finish(replace(run, probe=probe), place)


def leave_half_way(finished: Path, broken: Path) -> None:
    """A run's folder as a crash after its first state would have left it."""
    shutil.copytree(finished / "states" / "step-00000003", broken / "states" / "step-00000003")


def result(place: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((place / "result.json").read_text())
    return found


def assert_same_weights(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = (BlockDiffusionStudent.from_pretrained(place / "model") for place in (one, other))
    for (key, tensor), expected in zip(
        ours.checkpoint_tensors().items(), theirs.checkpoint_tensors().values(), strict=True
    ):
        torch.testing.assert_close(tensor, expected, rtol=0.0, atol=tolerance, msg=key)


class OneOf(Alone):
    """A trainer's place among several, for what it draws."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, TRAINERS


def test_the_trainers_have_unequal_numbers_of_forwards(bench: Bench) -> None:
    """Else the comparison would not show that a gather waits for all trainers."""
    runs = [bench.run(spec_of("budget"), collective=OneOf(rank), name=f"{rank}") for rank in range(TRAINERS)]
    numbers = [[len(draw_step(run.distillation, step).batches) for run in runs] for step in range(STEPS)]
    assert any(one != other for one, other in numbers)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("form", ["none", "fsdp"])
def test_two_trainers_train_as_one_does(folder: Path, name: str, form: str) -> None:
    one, two = result(folder / f"{name}-alone"), result(folder / f"{name}-{form}")
    assert two["steps"] == list(range(1, STEPS + 1))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
    assert two["held_out/nelbo"] == pytest.approx(one["held_out/nelbo"], rel=1e-5)
    assert len(two["held_out/nelbo"]) == STEPS // 2
    assert_same_weights(folder / f"{name}-alone", folder / f"{name}-{form}", 1e-4)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("form", ["fsdp-resumed", "resumed-alone"])
def test_a_state_of_one_form_goes_on_in_the_other(folder: Path, name: str, form: str) -> None:
    whole_run, rest = result(folder / f"{name}-alone"), result(folder / f"{name}-{form}")
    assert rest["steps"] == [4, 5, 6]
    assert rest["loss"] == pytest.approx(whole_run["loss"][3:], rel=1e-5)
    assert_same_weights(folder / f"{name}-alone", folder / f"{name}-{form}", 1e-4)


def test_parts_compute_in_bfloat16_as_autocast_does(folder: Path) -> None:
    parts, autocast = result(folder / "budget-fsdp-bfloat16"), result(folder / "budget-none-bfloat16")
    assert parts["loss"] == pytest.approx(autocast["loss"], rel=0.02)
    assert parts["loss"] != pytest.approx(result(folder / "budget-fsdp")["loss"], rel=1e-6)


def test_what_is_whole_stays_as_it_is() -> None:
    student = fresh_student("tied")
    assert not is_sharded(student)
    assert gather_student(student, 1) is student
    assert gather_whole(student.norm.weight) is student.norm.weight
    tensor = torch.zeros(32)
    assert place_like(tensor, student.norm.weight) is tensor


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_student_is_made_of_its_parameters(name: str) -> None:
    student = fresh_student(name)
    weights = {key: parameter.detach() for key, parameter in student.named_parameters()}
    again = BlockDiffusionStudent.of_parameters(student.config, weights)
    assert (again.lm_head.weight is again.embedding.weight) == (name == "tied")
    ids = torch.arange(12)[None]
    torch.testing.assert_close(again(ids), student(ids), rtol=0.0, atol=0.0)
    del weights["norm.weight"]
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        BlockDiffusionStudent.of_parameters(student.config, weights)

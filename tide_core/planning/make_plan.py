"""A job's capacity plan: what it would take of a cluster, before anything is spent.

In: a resolved spec, the configs of both models, the cluster, and what the data looks like. Out: a ``Plan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.plan import (
    Cluster,
    DataExpectations,
    ModelFacts,
    NoiseExpectations,
    Placement,
    Plan,
)
from tide_core.contracts.teacher import want_of
from tide_core.planning.choosing import LARGEST_BATCH, choose, simulate_candidate
from tide_core.planning.kinds import groups_of
from tide_core.planning.noise import draw_sequences
from tide_core.planning.placing import Candidate, balanced_ratio, read_wish
from tide_core.planning.roles import Step
from tide_core.planning.shapes import ModelShape, model_shape

_UNEVEN = 1.1
"""Ratio of simulated to mean pace above which a plan says so."""


@dataclass(frozen=True)
class ModelConfig:
    """A config.json and where it came from."""

    fields: Mapping[str, Any]
    source: Literal["folder", "request", "published"]


def make_plan(
    spec: ResolvedJobSpec,
    student: ModelConfig,
    teacher: ModelConfig | None,
    cluster: Cluster,
    data: DataExpectations,
    *,
    is_simulated: bool = True,
) -> Plan:
    """What a job would take.

    Args:
        spec: the job, resolved.
        student, teacher: their configs; the teacher's may be left out when the job asks it nothing.
        cluster: the devices.
        data: what sequences look like.
        is_simulated: choose by the simulation, and simulate what is shown, unless steps are very large.

    Raises:
        CheckpointError: a config lacks sizes.
        InvalidInputError: ``unknown_device_kind``, or ``does_not_fit`` with what to change.
    """
    groups = groups_of(cluster)
    student_shape = model_shape(student.fields, "student.model")
    teacher_shape = model_shape(teacher.fields, "teacher.model") if teacher is not None else None
    sizes = draw_sequences(spec, data)
    step = Step(spec, sizes, student_shape, teacher_shape if want_of(spec) is not None else None)
    steps = total_steps(spec, data)
    is_too_large = is_simulated and step.batch > LARGEST_BATCH
    is_simulated = is_simulated and not is_too_large
    choice = choose(step, groups, is_simulated=is_simulated)
    chosen = choice.candidate
    wish, problem = read_wish(step, groups)
    notes = [*_notes(step, data, chosen, sum(count for _, count in groups)), choice.reason]
    if is_too_large:
        notes.append(f"Not simulated: a step of more than {LARGEST_BATCH} sequences.")
    if problem:
        notes.append(problem)
    shown = _show(chosen, steps, is_simulated=is_simulated)
    played = shown.simulated
    if played is not None and played.seconds_per_step > _UNEVEN * shown.seconds_per_step:
        notes.append(
            f"Simulated, a step of the best placement takes {played.seconds_per_step:.3g} s, in the mean "
            f"{shown.seconds_per_step:.3g} s: its questions are few and large. A larger "
            "resources.prefetch_steps or a smaller micro_batch_size evens them out."
        )
    return Plan(
        pipeline=Pipeline(spec.pipeline),
        want=step.want,
        wire_bytes_per_masked_token=step.row_bytes,
        student=_facts(student_shape, student),
        teacher=_facts(teacher_shape, teacher) if teacher_shape and teacher else None,
        noise=_expectations(chosen),
        steps=steps,
        asked=_show(wish, steps, is_simulated=is_simulated) if wish else None,
        best=shown,
        balanced_replicas_per_trainer=balanced_ratio(chosen),
        notes=tuple(notes),
    )


def total_steps(spec: ResolvedJobSpec, data: DataExpectations) -> int | None:
    """Optimiser steps of the run; None when neither `max_steps` nor the number of rows is known."""
    hyper = spec.hyperparameters
    if hyper.max_steps is not None:
        return hyper.max_steps
    return None if data.rows is None else hyper.count_steps(data.rows)


def _show(candidate: Candidate, steps: int | None, *, is_simulated: bool) -> Placement:
    placement = candidate.placement(steps)
    if not is_simulated:
        return placement
    return placement.model_copy(update={"simulated": simulate_candidate(candidate)})


def _facts(shape: ModelShape, config: ModelConfig) -> ModelFacts:
    return ModelFacts(
        model_type=shape.model_type,
        source=config.source,
        parameters=shape.parameters,
        active_parameters=shape.active_parameters,
    )


def _expectations(candidate: Candidate) -> NoiseExpectations:
    sizes, teacher = candidate.step.sizes, candidate.teacher
    micro_batches, rows = candidate.trainer.shares(candidate.trainers)
    return NoiseExpectations(
        student_kept_tokens=float(sizes.kept.mean()),
        student_padded_tokens=sizes.padded_kept(rows, micro_batches * rows),
        student_masked_tokens=float(sizes.masked.mean()),
        teacher_tokens=teacher.padded_tokens if teacher is not None else 0.0,
        teacher_masked_tokens=float(sizes.teacher_masked.mean()) if teacher is not None else 0.0,
    )


def _notes(step: Step, data: DataExpectations, chosen: Candidate, devices: int) -> list[str]:
    hyper, resources = step.spec.hyperparameters, step.spec.resources
    notes = [
        f"Every sequence has {step.sizes.tokens} student tokens, {data.prompt_share:.0%} of them prompt"
        + (f", and {step.sizes.teacher_tokens} teacher tokens." if step.teacher is not None else ".")
    ]
    if total_steps(step.spec, data) is None:
        notes.append("The length of the run is unknown: give data.rows (tide plan --rows) or max_steps.")
    if chosen.trainers == hyper.global_batch_size and chosen.devices < devices:
        notes.append(
            f"{chosen.devices} of {devices} devices are used: with a global batch of "
            f"{hyper.global_batch_size} more trainers would have no work."
        )
    if resources.sharding == "fsdp":
        notes.append("Sharded students are planned by arithmetic that was not compared with runs.")
    if hyper.compile:
        notes.append("hyperparameters.compile: planned as if layers ran eagerly, which is slower.")
    on_gpu = chosen.trainer.kind.is_accelerator
    if on_gpu and not resources.gpus_per_worker:
        notes.append("resources.gpus_per_worker is 0: the plan gives every trainer a GPU; set it to 1.")
    if on_gpu and step.teacher is not None and not resources.gpus_per_teacher:
        notes.append("resources.gpus_per_teacher is 0: the plan gives every replica a GPU; set it to 1.")
    if chosen.shares_devices:
        notes.append(
            "Trainer and replica take turns on one device: set gpus_per_worker and gpus_per_teacher to "
            "fractions whose sum is 1."
        )
    return notes

"""A spec is strict, and resolving leaves nothing to decide."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import JobSpec, ResolvedJobSpec, resolve, views
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.states import Phase
from tide_core.contracts.teacher import phase_needs_teacher, pool_for


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "teacher": {"model": "/models/teacher"},
        "student": {"model": "/models/student"},
        "objective": "tide_cross",
        "data": {"sources": [{"location": "/data/train.jsonl"}]},
    } | changes


def resolved(pipeline: Pipeline = Pipeline.CROSS_TOKENIZER, **changes: Any) -> ResolvedJobSpec:
    spec = JobSpec.model_validate(minimal(**changes))
    return resolve(spec, pipeline=pipeline, teacher_architecture="llada2_moe")


def test_resolving_fills_every_dependent_default() -> None:
    job = resolved()
    assert job.variant is Variant.TIDE_CROSS
    assert [term.type for term in job.objective] == ["cross_entropy", "reverse_calm"]
    assert job.teacher.architecture == "llada2_moe"
    assert job.teacher.attention == "bidirectional"
    assert job.data.teacher_length == 1024
    assert job.hyperparameters.epochs == 10.0


def test_the_shared_pipeline_has_its_own_defaults() -> None:
    job = resolved(Pipeline.SHARED_TOKENIZER, objective="tide_shared")
    assert job.teacher.attention == "block_staircase"
    assert job.data.teacher_length == 768
    assert views(job.teacher_context) == 2


def test_a_resolved_spec_survives_storage_unchanged() -> None:
    job = resolved(hyperparameters={"max_steps": 7})
    assert ResolvedJobSpec.model_validate(json.loads(job.model_dump_json())) == job
    assert job.hyperparameters.epochs is None


def test_an_explicit_context_outranks_the_variants() -> None:
    job = resolved(teacher_context={"type": "comp_demo", "ratio": 0.25})
    assert job.teacher_context.ratio == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"tempo": 1}, "tempo"),
        ({"teacher": {"model": "a", "size": "16B"}}, "size"),
        ({"teacher": {"model": "a", "architecture": "gpt2"}}, "architecture"),
        ({"teacher": {"model": "a", "quantisation": "int3"}}, "quantisation"),
        ({"student": {}}, "model"),
        ({"student": {"config": {}}}, "tokenizer"),
        ({"data": {"sources": []}}, "sources"),
        ({"seed": -1}, "seed"),
        ({"hyperparameters": {"epochs": 1, "max_steps": 1}}, "epochs"),
        ({"resources": {"teacher_replicas": 3, "teacher_replicas_max": 2}}, r"teacher_replicas_max \(2\)"),
        ({"objective": "tide"}, "objective"),
        ({"objective": []}, "objective"),
        ({"data": {"sources": [{"location": "x"}], "student_length": 100}}, "block_size"),
        ({"hyperparameters": {"micro_batch_tokens": 1023}}, "at least 1024"),
        ({"resources": {"sharding": "fsdp"}}, "raise student_workers"),
        ({"resources": {"sharding": "fsdp", "student_workers": 2, "gpus_per_worker": 0.5}}, "whole GPU"),
        ({"resources": {"sharding": "zero"}}, "sharding"),
        ({"resources": {"tensor_transport": "nixl"}}, "set score_cache to false"),
        ({"resources": {"tensor_transport": "nccl", "score_cache": False}}, "tensor_transport"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ],
)
def test_bad_specs_are_refused_where_they_are_wrong(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        JobSpec.model_validate(minimal(**change))


def test_jobs_share_a_pool_when_the_teacher_answers_alike() -> None:
    one = pool_for(resolved())
    same = pool_for(resolved(seed=3, resources={"teacher_replicas": 2, "teacher_replicas_max": 4}))
    other = pool_for(resolved(teacher={"model": "/models/teacher", "dtype": "bfloat16"}))
    assert one.application == same.application != other.application
    kinds = [{"model": "/models/teacher", "quantisation": kind} for kind in ("none", "int8", "int4")]
    assert len({pool_for(resolved(teacher=teacher)).application for teacher in kinds}) == 3


def test_a_control_asks_the_teacher_only_when_it_is_evaluated() -> None:
    control = resolved(objective="none")
    assert not phase_needs_teacher(control, Phase.TRAIN)
    assert phase_needs_teacher(control, Phase.EVALUATE)
    silent = resolved(objective="none", evaluation={"teacher_kl": False, "baselines": False})
    assert not phase_needs_teacher(silent, Phase.EVALUATE)
    assert phase_needs_teacher(resolved(), Phase.TRAIN)
    assert not phase_needs_teacher(resolved(), Phase.PREPARE)


BY_NIXL = {"resources": {"tensor_transport": "nixl", "score_cache": False}}


@pytest.mark.parametrize(
    ("pipeline", "change", "said"),
    [
        (Pipeline.CROSS_TOKENIZER, {}, "one number a token"),
        (
            Pipeline.SHARED_TOKENIZER,
            {"objective": "tide_shared", "teacher": {"model": "/t", "top_k": 8}},
            "likeliest ids",
        ),
        (Pipeline.SHARED_TOKENIZER, {"objective": "none"}, "no term"),
    ],
)
def test_a_tensor_transport_without_tensors_is_refused(
    pipeline: Pipeline, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        resolved(pipeline, **(BY_NIXL | change))
    assert (caught.value.code, caught.value.param) == (
        "tensor_transport_mismatch",
        "resources.tensor_transport",
    )


def test_hidden_states_may_go_by_nixl_and_the_pool_stays_the_same() -> None:
    job = resolved(Pipeline.SHARED_TOKENIZER, objective="tide_shared", **BY_NIXL)
    assert job.resources.tensor_transport == "nixl"
    assert ResolvedJobSpec.model_validate(json.loads(job.model_dump_json())) == job
    other = resolved(Pipeline.SHARED_TOKENIZER, objective="tide_shared")
    assert pool_for(job).application == pool_for(other).application
    assert "tensor_transport" not in other.model_dump_json(), "workers of the version before do not know it"

"""Plans of the real-size pairs, for tests."""

from __future__ import annotations

from typing import Any

from tide_core.contracts.job import JobSpec, ResolvedJobSpec, resolve
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.plan import Cluster, DataExpectations, DeviceGroup, DeviceKind, Plan
from tide_core.planning.make_plan import ModelConfig, make_plan
from tide_core.planning.noise import draw_sequences
from tide_core.planning.published import PUBLISHED
from tide_core.planning.roles import Step
from tide_core.planning.shapes import model_shape

STUDENT, MIXTURE, DENSE = "Qwen/Qwen3-0.6B", "inclusionAI/LLaDA2.0-mini", "tencent/WeDLM-8B-Instruct"


def spec_of(pipeline: Pipeline, objective: Any, **changes: Any) -> ResolvedJobSpec:
    cross = pipeline is Pipeline.CROSS_TOKENIZER
    body: dict[str, Any] = {
        "teacher": {"model": MIXTURE if cross else DENSE},
        "student": {"model": STUDENT},
        "objective": objective,
        "data": {"sources": [{"location": "rows", "format": "hub"}]},
    }
    for name, value in changes.items():
        body[name] = body.get(name, {}) | value if isinstance(value, dict) else value
    return resolve(JobSpec.model_validate(body), pipeline=pipeline)


CROSS = spec_of(Pipeline.CROSS_TOKENIZER, "tide_cross")
SHARED = spec_of(Pipeline.SHARED_TOKENIZER, "tide_shared")


def plan(
    spec: ResolvedJobSpec,
    *groups: tuple[str | DeviceKind, int],
    data: DataExpectations | None = None,
    is_simulated: bool = False,
) -> Plan:
    cluster = Cluster(devices=tuple(DeviceGroup(kind=kind, count=count) for kind, count in groups))
    assert spec.student.model is not None
    return make_plan(
        spec,
        ModelConfig(PUBLISHED[spec.student.model], "published"),
        ModelConfig(PUBLISHED[spec.teacher.model], "published"),
        cluster,
        data or DataExpectations(),
        is_simulated=is_simulated,
    )


def step_of(spec: ResolvedJobSpec) -> Step:
    """The step of a spec, with what its expected data draws."""
    assert spec.student.model is not None
    student, teacher = (
        model_shape(PUBLISHED[name], name) for name in (spec.student.model, spec.teacher.model)
    )
    return Step(spec, draw_sequences(spec, DataExpectations()), student, teacher)

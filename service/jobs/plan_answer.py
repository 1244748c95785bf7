"""The answer to a plan request.

In: a spec that is not posted yet, and a cluster. Out: its capacity plan; nothing is stored. The spec is
checked like a posted one, and the models' sizes come from the request, their folder, or the published ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from service.db.storable import check_storable
from service.jobs import preflight
from service.jobs.locations import local_path
from service.jobs.model_folders import read_config
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.plan import Plan, PlanRequest
from tide_core.contracts.teacher import want_of
from tide_core.planning.make_plan import ModelConfig, make_plan
from tide_core.planning.published import PUBLISHED


async def plan(request: PlanRequest) -> Plan:
    """The plan of a job; nothing is stored.

    Raises:
        InvalidInputError: as a posted job's; ``model_sizes_unknown``; ``unknown_device_kind``;
            ``does_not_fit``, with what to change.
    """
    check_storable(request.spec.model_dump(mode="python"))
    return await asyncio.to_thread(_plan, request)


def _plan(request: PlanRequest) -> Plan:
    spec = preflight.accept(request.spec)
    if spec.student.config is not None:
        student = ModelConfig(spec.student.config, "request")
    else:
        assert spec.student.model is not None
        student = _config(spec.student.model, request.student_config, "student")
    teacher = None
    if want_of(spec) is not None:
        teacher = _config(spec.teacher.model, request.teacher_config, "teacher")
    return make_plan(spec, student, teacher, request.cluster, request.data, is_simulated=request.simulate)


def _config(model: str, given: dict[str, Any] | None, side: str) -> ModelConfig:
    """The request's own config, else the folder's, else the published one of a well-known model."""
    if given is not None:
        return ModelConfig(given, "request")
    param = f"spec.{side}.model"
    folder = local_path(model, param)
    if folder is not None:
        return ModelConfig(read_config(folder, param), "folder")
    if model in PUBLISHED:
        return ModelConfig(PUBLISHED[model], "published")
    raise InvalidInputError(
        f"Tide does not know the sizes of {model!r}: it is not a folder on the server, and not one of "
        f"{', '.join(PUBLISHED)}. Give the fields of its config.json as '{side}_config' "
        f"(tide plan --{side}-config FILE).",
        code="model_sizes_unknown",
        param=f"{side}_config",
    )

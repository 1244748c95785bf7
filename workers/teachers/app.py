"""The Serve application of a teacher's pool: the kind `TEACHERS` of `tide_core.contracts.serving`.

In: a `TeacherPool`, and score requests of all jobs that lease it. Out: answers of the engine, errors as
values, and a health check that ends a replica whose answers are not the teacher's any more. The process that
builds the application imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tide_core.contracts.errors import TideError
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, Want
from tide_core.contracts.serving import TEACHERS
from tide_core.contracts.teacher import TeacherDescription, TeacherPool
from workers.applications import make_application
from workers.ray_tensors import require_nixl
from workers.teachers.holding import SHELF, HeldAnswer, hold_answer

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: dict[str, Any]) -> Application:
    """The application for one pool, called by Serve with the application's ``args``.

    Args:
        args: a :class:`TeacherPool` as :meth:`ApplicationKind.pack` packs it.

    Raises:
        pydantic.ValidationError: the arguments are no pool.
    """
    pool = TEACHERS.unpack(args)
    return make_application(
        TEACHERS,
        TeacherReplica,
        pool.model_dump(mode="json"),
        replicas=pool.replicas,
        cpus=pool.cpus_per_replica,
        gpus=pool.gpus_per_replica,
    )


class TeacherReplica:
    """One replica: loads its weights, attests itself, then answers score requests of all jobs.

    Args:
        pool: fields of the :class:`TeacherPool` that the replica belongs to.

    Raises:
        TideError: the teacher cannot be loaded, or its first answers are not sound.
    """

    def __init__(self, pool: dict[str, Any]) -> None:
        from workers.reporting.ray_metrics import RaySink
        from workers.teachers.attestation import Attestor, golden_requests
        from workers.teachers.loading import load_for_serving
        from workers.teachers.metering import MeteredRecorder, TeacherMeter
        from workers.teachers.scaling import LoadMeter

        parsed = TeacherPool.model_validate(pool)
        self._meter = TeacherMeter(RaySink(), application=parsed.application, model=parsed.teacher.model)
        loaded = load_for_serving(
            parsed.teacher,
            threads=max(1, int(parsed.cpus_per_replica)),
            recorder=MeteredRecorder(self._meter),
        )
        self._engine = loaded.engine
        self._description = loaded.description
        self._attestor = Attestor(
            loaded.engine,
            golden_requests(loaded.tokenizer),
            loaded.description.dtype,
            on_result=self._meter.count_attestation,
        )
        self._attestor.attest()
        self._load = LoadMeter()

    async def score(
        self, request: ScoreRequest, is_held: bool = False
    ) -> ScoreResponse | HeldAnswer | TideError:
        """Answer one request.

        Args:
            request: the question.
            is_held: hold the hidden states here, for the trainer to read by NIXL. Given by position: trainers
                of an older version call it `direct`.

        What :meth:`workers.teachers.engine.TeacherEngine.submit` raises is the answer's value: raised here,
        Serve would log a traceback for every request that a busy replica turns away.
        """
        try:
            if is_held and request.want is Want.HIDDEN:
                return await self._score_and_hold(request)
            return await self._engine.score(request)
        except TideError as error:
            return error.with_traceback(None)

    async def _score_and_hold(self, request: ScoreRequest) -> ScoreResponse | HeldAnswer:
        asked_at = time.monotonic()
        require_nixl("the teacher's replica")
        response = await self._engine.score(request, is_held=True)
        values: Any = response.values
        without = replace(response, values=request.value_format(values.shape[1]).empty())
        if not len(values):
            return without  # nothing was masked, and NIXL has no empty reads
        return await hold_answer(without, values, asked_at)

    async def describe(self) -> TeacherDescription:
        """What this replica serves."""
        return self._description

    async def stats(self) -> dict[str, Any]:
        """Counters of the engine: see :class:`workers.teachers.statistics.EngineStatistics`."""
        return self._engine.statistics().as_dict()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds, for :class:`workers.teachers.scaling.QueueDelayPolicy`."""
        return self._load.read(self._engine.statistics())

    async def check_health(self) -> None:
        """Called by Serve every few seconds; an exception replaces the replica.

        Raises:
            AttestationError, ScoreError: the golden prompts are no longer answered as they were.
        """
        SHELF.sweep()
        self._meter.publish(self._engine.statistics())
        self._attestor.check()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close(timeout=5.0)


# Serve pickles a replica's class by its name and keeps that as long as the pool runs. Further replicas of a
# running pool, and nodes with the image of the version before, know this class by the name `Teacher` alone.
Teacher = TeacherReplica
TeacherReplica.__name__ = TeacherReplica.__qualname__ = "Teacher"

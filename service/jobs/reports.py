"""Storing what workers report, exactly once.

In: a batch of reports with the token of its attempt. Out: rows of metrics, events and checkpoints, and a
receipt.

A batch is stored in one transaction that holds the job's row. Numbers rise within (attempt, phase), and one
reporter sends them in their order: what is at or below the stored number is a repetition, which is
acknowledged again and not stored. A number may be missing: a worker gives up a report that was refused as
malformed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from service.access.attempt_tokens import AttemptIdentity
from service.clock import utc_now
from service.datasets import service as datasets
from service.db.storable import storable
from service.db.upsert import upsert
from service.events import service as events
from service.identifiers import new_id
from service.jobs import repository
from service.jobs.outcomes import PhaseOutcome
from service.jobs.tables import CheckpointRow, JobRow, MetricRow, PhaseRunRow
from service.models import service as models
from service.observability.metrics import PHASE_SECONDS, REPORTS
from service.teachers import repository as teachers
from tide_core.contracts.errors import ConflictError
from tide_core.contracts.event import EventType, PhaseStep, phase_event
from tide_core.contracts.reporting import (
    AnyReport,
    CheckpointDeleted,
    CheckpointSaved,
    DatasetPrepared,
    Failed,
    Finished,
    Metrics,
    Note,
    Progress,
    Report,
    ReportBatch,
    ReportReceipt,
    TeacherAttested,
)
from tide_core.contracts.states import TERMINAL_STATES, JobState, Phase

for _phase in Phase:  # from 0 on: a first end is a rise too
    for _outcome in PhaseOutcome:
        PHASE_SECONDS.labels(str(_phase), str(_outcome))
_STOPPING = frozenset({JobState.CANCELLING, JobState.PAUSING, JobState.PAUSED}) | TERMINAL_STATES


async def store(session: AsyncSession, identity: AttemptIdentity, batch: ReportBatch) -> ReportReceipt:
    """Store a batch of reports.

    Args:
        session: a writing transaction.
        identity: whose token came with the batch.
        batch: reports, in the order of their numbers.

    Raises:
        ConflictError: ``attempt_ended`` when the attempt is over or a later one runs; ``phase_ended`` when
            the phase has reported its end already. A batch that only repeats stored reports is never refused.
    """
    job = await repository.lock(session, identity.job_id)
    run = await repository.ensure_phase_run(session, job.id, identity.attempt, identity.phase)
    fresh = _select_fresh(batch.reports, run.last_sequence)
    if fresh or not batch.reports:  # an empty batch is a sign of life, and asks whether to go on
        _check_attempt(job, identity)
    if fresh:
        _check_phase(run)
        await _Ingestion(session, job, run).take(fresh)
    return ReportReceipt(acknowledged=run.last_sequence, stop_requested=job.state in _STOPPING)


def _select_fresh(reports: Sequence[Report], stored: int) -> list[Report]:
    """The reports above the stored number, each number once, in rising order."""
    fresh = {report.sequence: report for report in reports if report.sequence > stored}
    return [fresh[number] for number in sorted(fresh)]


def _check_attempt(job: JobRow, identity: AttemptIdentity) -> None:
    if identity.is_revoked or identity.attempt != job.attempt or job.state in TERMINAL_STATES:
        raise ConflictError(
            f"Attempt {identity.attempt} of job {job.id} has ended; its reports are no longer taken. Stop.",
            code="attempt_ended",
        )


def _check_phase(run: PhaseRunRow) -> None:
    if run.outcome is not None:
        raise ConflictError(
            f"The phase {run.phase} of attempt {run.attempt} has reported its end already.",
            code="phase_ended",
        )


def _translate(body: AnyReport) -> AnyReport:
    """A report of an older worker in this version's terms.

    Workers of 0.1 attest their teacher by a note whose message is the fingerprint. Their jobs may run on
    after the upgrade; this goes once nothing is upgraded from 0.1.
    """
    if isinstance(body, Note) and body.code == EventType.TEACHER_ATTESTED and body.message:
        return TeacherAttested(fingerprint=body.message)
    return body


class _Ingestion:
    """Takes the reports of one batch into the running transaction."""

    def __init__(self, session: AsyncSession, job: JobRow, run: PhaseRunRow) -> None:
        self._session = session
        self._job = job
        self._run = run
        self._figures: dict[tuple[str, int], dict[str, Any]] = {}

    async def take(self, reports: Sequence[Report]) -> None:
        for report in reports:
            if self._run.outcome is not None:
                break  # nothing follows the report of an end; the worker is told by the acknowledged number
            await self._take_one(report)
            self._run.last_sequence = report.sequence
            REPORTS.labels(report.body.type).inc()
        self._run.last_report_at = utc_now()
        await upsert(
            self._session,
            MetricRow,
            list(self._figures.values()),
            update=("value", "attempt", "recorded_at"),
        )
        await self._session.flush()

    async def _take_one(self, report: Report) -> None:
        body = _translate(report.body)
        match body:
            case Progress():
                await self._store_progress(body)
            case Metrics():
                self._collect_metrics(report, body)
            case CheckpointSaved():
                await self._record_checkpoint(body)
            case CheckpointDeleted():
                await self._forget_checkpoint(body)
            case DatasetPrepared():
                await self._record_dataset(body)
            case TeacherAttested():
                await self._record_attestation(body)
            case Note():
                self._tell(body.code[:128], body.message, body.level)
            case Finished():
                await self._finish(body)
            case Failed():
                self._fail(body)

    def _tell(self, type: str, message: str, level: events.Level = "info", **data: Any) -> None:
        facts = {"attempt": self._run.attempt, "phase": str(self._run.phase)} | data
        events.append(self._session, self._job.id, type, message, level=level, data=facts)

    async def _set_on_job(self, **values: Any) -> None:
        """Update columns that are not the state machine's: the job's version stays as it is."""
        for name, value in values.items():
            setattr(self._job, name, value)
        await self._session.flush()

    async def _store_progress(self, report: Progress) -> None:
        shown = report.model_dump(mode="json", exclude={"type"}) | {"updated_at": utc_now().isoformat()}
        await self._set_on_job(progress=storable(shown), updated_at=utc_now())

    def _collect_metrics(self, report: Report, body: Metrics) -> None:
        for name, value in body.values.items():
            if math.isfinite(value):
                self._figures[name[:128], body.step] = {
                    "job_id": self._job.id,
                    "name": storable(name[:128]),
                    "step": body.step,
                    "value": value,
                    "attempt": self._run.attempt,
                    "recorded_at": report.time,
                }
        odd = sorted(name for name, value in body.values.items() if not math.isfinite(value))
        if odd:
            message = (
                f"Step {body.step} reported figures that are not finite and are left out: {', '.join(odd)}."
            )
            self._tell(EventType.METRICS_NON_FINITE, message, "warning", step=body.step, names=odd)

    async def _record_checkpoint(self, report: CheckpointSaved) -> None:
        if report.is_export:
            await models.record(self._session, self._job.id, report)
        row = await repository.checkpoint_at(self._session, self._job.id, report.location)
        if row is None:
            row = CheckpointRow(id=new_id("ckpt"), job_id=self._job.id, location=report.location)
            self._session.add(row)
        row.attempt, row.step, row.bytes = self._run.attempt, report.step, report.bytes
        row.is_export, row.created_at, row.deleted_at = report.is_export, utc_now(), None
        await self._session.flush()
        kind, what = (
            (EventType.MODEL_EXPORTED, "The model")
            if report.is_export
            else (EventType.CHECKPOINT_SAVED, "A checkpoint")
        )
        self._tell(
            kind,
            f"{what} of step {report.step} is at {report.location}.",
            step=report.step,
            location=report.location,
            bytes=report.bytes,
        )

    async def _forget_checkpoint(self, report: CheckpointDeleted) -> None:
        await self._session.execute(
            update(CheckpointRow)
            .where(CheckpointRow.job_id == self._job.id, CheckpointRow.location == report.location)
            .values(deleted_at=utc_now())
        )
        self._tell(
            EventType.CHECKPOINT_DELETED,
            f"The checkpoint of step {report.step} was deleted by the retention policy.",
            step=report.step,
            location=report.location,
        )

    async def _record_dataset(self, report: DatasetPrepared) -> None:
        await datasets.record(self._session, report)
        await self._set_on_job(prepared_hash=report.content_hash)
        how = "was found in storage" if report.reused else "is prepared"
        rejected = sum(report.rejected.values())
        self._tell(
            EventType.DATA_PREPARED,
            f"The data set {how}: {report.rows} rows to train on, {report.held_out_rows} held out, "
            f"{rejected} left out; {report.coverage.share:.1%} of the answers' bytes can be compared.",
            **report.model_dump(mode="json", exclude={"type"}),
        )

    async def _record_attestation(self, report: TeacherAttested) -> None:
        if self._run.phase is Phase.TRAIN:
            await self._pin_teacher(report.fingerprint)
        self._tell(EventType.TEACHER_ATTESTED, report.fingerprint, fingerprint=report.fingerprint)

    async def _pin_teacher(self, fingerprint: str) -> None:
        """Pin the job to the weights that its first attempt was taught by."""
        if self._job.teacher_fingerprint is None:
            await self._set_on_job(teacher_fingerprint=fingerprint)
        lease = await teachers.find_lease(self._session, self._job.id)
        if lease is not None:
            (await teachers.get(self._session, lease.application)).fingerprint = fingerprint

    async def _finish(self, report: Finished) -> None:
        is_stopped = report.is_stopped
        outcome = PhaseOutcome.STOPPED if is_stopped else PhaseOutcome.FINISHED
        self._end(outcome, result=storable(report.result))
        if self._run.phase is Phase.EVALUATE and not is_stopped:
            await self._set_on_job(result=storable(report.result))
        verb = "stopped as asked" if is_stopped else "finished"
        self._tell(phase_event(self._run.phase, PhaseStep(outcome)), f"The phase {self._run.phase} {verb}.")

    def _fail(self, report: Failed) -> None:
        self._end(
            PhaseOutcome.FAILED,
            error_code=storable(report.code[:64]),
            error_message=storable(report.message),
            retryable=report.retryable,
        )
        self._tell(
            phase_event(self._run.phase, PhaseStep.FAILED),
            report.message,
            "error",
            code=report.code,
            retryable=report.retryable,
        )

    def _end(self, outcome: PhaseOutcome, **values: Any) -> None:
        self._run.outcome, self._run.ended_at = outcome, utc_now()
        began = self._run.submitted_at or self._run.created_at
        seconds = (self._run.ended_at - began).total_seconds()
        PHASE_SECONDS.labels(str(self._run.phase), str(outcome)).observe(seconds)
        for name, value in values.items():
            setattr(self._run, name, value)

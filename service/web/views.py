"""What the page shows, made from the REST objects (pure: no request, no database)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tide_core.contracts.figures import (
    GRADIENT_NORM,
    HELD_OUT,
    LEARNING_RATE,
    LOSS,
    STEP_SECONDS,
    TEACHER_WAIT_SECONDS,
    TOKENS_PER_SECOND,
    Figure,
    Measure,
    Unit,
)
from tide_core.contracts.objective import term_names
from tide_core.contracts.resources import Checkpoint, Job, JobError, Teacher
from tide_core.contracts.states import JobState
from tide_core.contracts.teacher import PoolState

JOB_TONES = {JobState.SUCCEEDED: "good", JobState.FAILED: "bad", JobState.CANCELLED: ""}
POOL_TONES = {
    PoolState.READY: "good",
    PoolState.UNHEALTHY: "bad",
    PoolState.STARTING: "busy",
    PoolState.STOPPING: "busy",
    PoolState.STOPPED: "",
}
OVERVIEW_JOBS = 6
"""How many of the newest jobs share the overview's charts."""


@dataclass(frozen=True)
class JobCard:
    """One job in words."""

    id: str
    title: str
    state: str
    tone: str
    stage: str
    fraction: float | None
    progress_text: str
    eta: str
    objective: str
    pipeline: str
    attempt: int
    created: str
    error: JobError | None
    facts: tuple[tuple[str, str], ...]
    spec_json: str


@dataclass(frozen=True)
class TeacherCard:
    """One pool in words."""

    title: str
    application: str
    state: str
    tone: str
    message: str
    replicas: str
    leases: int
    fingerprint: str


@dataclass(frozen=True)
class CheckpointCard:
    """One checkpoint in words."""

    step: int
    kind: str
    size: str
    location: str


@dataclass(frozen=True)
class Chart:
    """One plot: a title, the series it polls, and what to say while there is none."""

    title: str
    series: tuple[dict[str, str], ...]
    empty: str = "No data yet."


JOB_CHARTS = (
    (LOSS,),
    (HELD_OUT,),
    (TEACHER_WAIT_SECONDS, STEP_SECONDS),
    (TOKENS_PER_SECOND,),
    (GRADIENT_NORM,),
    (LEARNING_RATE,),
)
"""Which figures of a job are drawn, and which of them together."""
HELD_OUT_MEMBER = Measure.NELBO
"""The one held-out figure that a running job has."""


def to_job_card(job: Job) -> JobCard:
    """A job as the page shows it."""
    progress = job.progress
    running = job.status not in JOB_TONES
    has_total = running and progress is not None and bool(progress.total)
    return JobCard(
        id=job.id,
        title=job.name or job.id,
        state=job.status,
        tone=JOB_TONES.get(job.status, "busy"),
        stage=progress.stage if progress is not None and running else "",
        fraction=min(progress.completed / progress.total, 1.0) if has_total else None,  # type: ignore[union-attr, operator]
        progress_text=f"{progress.completed:g} of {progress.total:g} {progress.unit}" if has_total else "",  # type: ignore[union-attr]
        eta=format_duration(progress.eta_seconds) if progress is not None and running else "",
        objective=job.variant or " + ".join(term.type for term in job.spec.objective),
        pipeline=job.pipeline.replace("_", " "),
        attempt=job.attempt,
        created=format_moment(job.created_at),
        error=job.error,
        facts=_facts(job),
        spec_json=job.spec.model_dump_json(indent=2),
    )


def _facts(job: Job) -> tuple[tuple[str, str], ...]:
    elapsed = None
    if job.started_at is not None:
        elapsed = ((job.finished_at or job.updated_at) - job.started_at).total_seconds()
    facts = [
        ("Id", job.id),
        ("Objective", job.variant or "custom"),
        ("Pipeline", job.pipeline.replace("_", " ")),
        ("Teacher", short_name(job.spec.teacher.model)),
        ("Student", short_name(job.spec.student.model) if job.spec.student.model else "fresh, from config"),
        ("Workers", str(job.spec.resources.student_workers)),
        ("Attempt", str(job.attempt)),
        ("Running for" if job.finished_at is None else "Duration", format_duration(elapsed)),
    ]
    if job.model is not None:
        facts.append(("Model", job.model.location))
    return tuple(facts)


def to_teacher_card(teacher: Teacher) -> TeacherCard:
    """A pool as the page shows it."""
    return TeacherCard(
        title=short_name(teacher.teacher.model),
        application=teacher.id,
        state=teacher.status,
        tone=POOL_TONES[teacher.status],
        message=teacher.message or "",
        replicas=_replicas(teacher),
        leases=len(teacher.leases),
        fingerprint=(teacher.fingerprint or "")[:16],
    )


def _replicas(teacher: Teacher) -> str:
    """How many replicas answer, of how many, as in "1 of 2" or "3 of 1 to 4"."""
    wanted = f"{teacher.ready_replicas} of {teacher.replicas}"
    return wanted if teacher.max_replicas <= teacher.replicas else f"{wanted} to {teacher.max_replicas}"


def to_checkpoint_card(checkpoint: Checkpoint) -> CheckpointCard:
    """A checkpoint as the page shows it."""
    return CheckpointCard(
        step=checkpoint.step,
        kind="model" if checkpoint.is_export else "training state",
        size=format_size(checkpoint.bytes),
        location=checkpoint.location,
    )


def overview_charts(jobs: Sequence[Job]) -> list[Chart]:
    """The loss curves of the newest jobs in one plot, and their waits for the teacher in another."""
    newest = jobs[:OVERVIEW_JOBS]
    return [
        Chart(
            chart_title(figure),
            tuple({"job": job.id, "name": figure.name, "label": job.name or job.id} for job in newest),
        )
        for figure in (LOSS, TEACHER_WAIT_SECONDS)
    ]


def job_charts(job: Job) -> list[Chart]:
    """All charts of one job; the terms of its loss are drawn together."""
    names = term_names(job.spec.objective)
    terms = Chart(
        "Loss by term", tuple({"job": job.id, "name": LOSS.of(name), "label": name} for name in names)
    )
    others = [
        Chart(chart_title(*figures), tuple(_drawn_series(job.id, figure) for figure in figures))
        for figures in JOB_CHARTS
    ]
    return [others[0], terms, *others[1:]]


def _drawn_series(job_id: str, figure: Figure) -> dict[str, str]:
    name = figure.of(HELD_OUT_MEMBER) if figure is HELD_OUT else figure.name
    return {"job": job_id, "name": name, "label": name}


def chart_title(*figures: Figure) -> str:
    """The titles of figures of one unit, and the unit in brackets."""
    if figures == (HELD_OUT,):
        return f"Held-out NELBO ({Unit.NATS_PER_TOKEN})"
    first, *others = (figure.title for figure in figures)
    title = " and ".join([first, *(other[:1].lower() + other[1:] for other in others)])
    unit = figures[0].unit
    return title if unit is Unit.NONE else f"{title} ({unit})"


def short_name(location: str) -> str:
    """The last part of a path or of a hub name."""
    return location.rstrip("/").rsplit("/", 1)[-1]


def format_moment(time: datetime) -> str:
    """A time to the minute, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC")


def format_duration(seconds: float | None) -> str:
    """A duration in the two largest units: "1 h 5 min", "3 min 20 s"; empty when unknown."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_size(count: int) -> str:
    """Bytes in a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

"""What the page shows, made from the REST objects (pure: no request, no database)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tide_core.contracts.figures import LOSS
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
class JobView:
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
class TeacherView:
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
class CheckpointView:
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
    empty: str = "No figures yet."


JOB_CHARTS = (
    ("Loss", ("loss",)),
    ("Held-out NELBO per token", ("held_out/nelbo",)),
    ("Teacher wait and step time, seconds", ("teacher_wait_seconds", "step_seconds")),
    ("Tokens a second", ("tokens_per_second",)),
    ("Gradient norm", ("gradient_norm",)),
    ("Learning rate", ("learning_rate",)),
)


def job_view(job: Job) -> JobView:
    """A job as the page shows it."""
    progress = job.progress
    running = job.status not in JOB_TONES
    has_total = running and progress is not None and bool(progress.total)
    return JobView(
        id=job.id,
        title=job.name or job.id,
        state=job.status,
        tone=JOB_TONES.get(job.status, "busy"),
        stage=progress.stage if progress is not None and running else "",
        fraction=min(progress.completed / progress.total, 1.0) if has_total else None,  # type: ignore[union-attr, operator]
        progress_text=f"{progress.completed:g} of {progress.total:g} {progress.unit}" if has_total else "",  # type: ignore[union-attr]
        eta=duration(progress.eta_seconds) if progress is not None and running else "",
        objective=job.variant or " + ".join(term.type for term in job.spec.objective),
        pipeline=job.pipeline.replace("_", " "),
        attempt=job.attempt,
        created=moment(job.created_at),
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
        ("Time so far" if job.finished_at is None else "Took", duration(elapsed)),
    ]
    if job.model is not None:
        facts.append(("Model", job.model.location))
    return tuple(facts)


def teacher_view(teacher: Teacher) -> TeacherView:
    """A pool as the page shows it."""
    return TeacherView(
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


def checkpoint_view(checkpoint: Checkpoint) -> CheckpointView:
    """A checkpoint as the page shows it."""
    return CheckpointView(
        step=checkpoint.step,
        kind="model" if checkpoint.is_export else "training state",
        size=size(checkpoint.bytes),
        location=checkpoint.location,
    )


def overview_charts(jobs: Sequence[Job]) -> list[Chart]:
    """The loss curves of the newest jobs in one plot, and their teacher's waiting beside it."""
    newest = jobs[:OVERVIEW_JOBS]
    return [
        Chart(title, tuple({"job": job.id, "name": name, "label": job.name or job.id} for job in newest))
        for title, name in (
            ("Training loss", "loss"),
            ("Seconds waited for the teacher", "teacher_wait_seconds"),
        )
    ]


def job_charts(job: Job) -> list[Chart]:
    """All charts of one job; the terms of its loss are drawn together."""
    terms = Chart(
        "Loss by term",
        tuple(
            {"job": job.id, "name": LOSS.of(name), "label": name} for name in term_names(job.spec.objective)
        ),
    )
    others = [
        Chart(title, tuple({"job": job.id, "name": name, "label": name} for name in names))
        for title, names in JOB_CHARTS
    ]
    return [others[0], terms, *others[1:]]


def short_name(location: str) -> str:
    """The last part of a path or of a hub name."""
    return location.rstrip("/").rsplit("/", 1)[-1]


def moment(time: datetime) -> str:
    """A time to the minute, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float | None) -> str:
    """A duration in the two largest units: "1 h 5 min", "3 min 20 s"; empty when unknown."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: int) -> str:
    """Bytes in a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

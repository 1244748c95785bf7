"""Following a job: a live bar in a terminal, plain lines anywhere else, JSON lines for programs."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import typer

from tide.cli.failures import FAILED, INTERRUPTED
from tide.cli.options import Output
from tide.cli.output import duration, json_line, progress_text
from tide.client import Client
from tide_core.contracts.errors import TideError
from tide_core.contracts.event import Event, EventType
from tide_core.contracts.figures import LOSS
from tide_core.contracts.resources import Job, JobProgress
from tide_core.contracts.states import JobState, Phase

_LINE_SECONDS = 10.0
"""Without a terminal, progress is a line at most this often."""


def follow(client: Client, job_id: str, output: Output) -> int:
    """Show a job until it ends.

    Returns:
        Exit status: 0 when it succeeded, 1 when it failed or was cancelled, 130 after Ctrl-C.
    """
    view = _view(output)
    try:
        client.jobs.get(job_id)  # an unknown job or address is an error at once
        with view.open():
            for message in client.jobs.watch(job_id):
                if isinstance(message, Event):
                    view.show_event(message)
                else:
                    view.show_progress(message, _loss(client, job_id))
        job = client.jobs.get(job_id)
    except KeyboardInterrupt:
        typer.echo(
            f"\nThe job goes on. Watch it again: tide jobs watch {job_id}; end it: tide jobs cancel {job_id}",
            err=True,
        )
        return INTERRUPTED
    view.show_end(job)
    return 0 if job.status is JobState.SUCCEEDED else FAILED


def _loss(client: Client, job_id: str) -> float | None:
    try:
        series = client.jobs.metrics(job_id, LOSS.name, max_points=4).data
    except TideError:  # a decoration: never the reason to stop watching
        return None
    return series[0].values[-1] if series and series[0].values else None


class View(Protocol):
    """Shows a job that is being watched."""

    def open(self) -> AbstractContextManager[Any]:
        """Keep it on the screen meanwhile."""

    def show_event(self, event: Event) -> None:
        """Show an event."""

    def show_progress(self, progress: JobProgress, loss: float | None) -> None:
        """Show progress."""

    def show_end(self, job: Job) -> None:
        """Show how it ended."""


def _view(output: Output) -> View:
    if output is Output.JSON:
        return JsonView()
    return BarView() if sys.stdout.isatty() else LineView()


class JsonView:
    """One JSON object a line; the job comes last."""

    def open(self) -> AbstractContextManager[Any]:
        """Set nothing up."""
        return nullcontext()

    def show_event(self, event: Event) -> None:
        """Print the event as it came."""
        typer.echo(json_line(event))

    def show_progress(self, progress: JobProgress, loss: float | None) -> None:
        """Print progress with its loss."""
        facts = progress.model_dump(mode="json")
        typer.echo(json_line({"object": "job.progress", **facts, "loss": loss}))

    def show_end(self, job: Job) -> None:
        """Print the job."""
        typer.echo(json_line(job))


class LineView:
    """Plain lines, few enough for a log file."""

    def __init__(self) -> None:
        self._last: tuple[str, float] = ("", float("-inf"))

    def open(self) -> AbstractContextManager[Any]:
        """Set nothing up."""
        return nullcontext()

    def show_event(self, event: Event) -> None:
        """Print one line."""
        typer.echo(event_line(event))

    def show_progress(self, progress: JobProgress, loss: float | None) -> None:
        """Print one line, unless the stage's last one is fresh and this is not its end."""
        stage, now = f"{progress.phase}/{progress.stage}", time.monotonic()
        is_done = progress.total and progress.completed >= progress.total
        if self._last[0] == stage and now - self._last[1] < _LINE_SECONDS and not is_done:
            return
        self._last = (stage, now)
        tail = f", loss {loss:.4f}" if loss is not None and progress.phase is Phase.TRAIN else ""
        typer.echo(f"          {progress_text(progress)}{tail}")

    def show_end(self, job: Job) -> None:
        """Print the outcome."""
        typer.echo(outcome(job))


class BarView:
    """Events above, a live bar below."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[amount]}"),
            TextColumn("{task.fields[tail]}"),
        )
        self._task = self._bar.add_task("waiting", total=None, amount="", tail="")

    def open(self) -> AbstractContextManager[Any]:
        """Show the bar meanwhile."""
        return self._bar

    def show_event(self, event: Event) -> None:
        """Print a line above the bar."""
        self._bar.console.print(event_line(event), markup=False, highlight=False)

    def show_progress(self, progress: JobProgress, loss: float | None) -> None:
        """Move the bar."""
        total = progress.total
        amount = f"{progress.completed:g}" + (f"/{total:g}" if total else "") + f" {progress.unit}"
        tails = []
        if loss is not None and progress.phase is Phase.TRAIN:
            tails.append(f"loss {loss:.4f}")
        if progress.eta_seconds is not None:
            tails.append(f"{duration(progress.eta_seconds)} left")
        self._bar.update(
            self._task,
            description=progress.stage,
            total=total,
            completed=progress.completed,
            amount=amount,
            tail=", ".join(tails),
        )

    def show_end(self, job: Job) -> None:
        """Print the outcome."""
        typer.echo(outcome(job))


def event_line(event: Event) -> str:
    """Write an event as a line: time, message, and its level when that matters."""
    level = "" if event.level == "info" else f"{event.level.upper()}: "
    message = event.message
    if event.type == EventType.TEACHER_ATTESTED:  # the message is the fingerprint and nothing else
        message = f"The teacher attested the fingerprint {message[:16]}."
    return f"{event.created_at:%H:%M:%S}  {level}{message}"


def outcome(job: Job) -> str:
    """Say how a job ended, and where its model is."""
    if job.status is JobState.SUCCEEDED:
        model = job.model.location if job.model else None
        where = f" The student is at {model}\nTry it: tide sample {model} 'your prompt'" if model else ""
        return f"{job.id} succeeded.{where}"
    if job.error:
        return f"{job.id} {job.status}: {job.error.message} ({job.error.code})"
    return f"{job.id} is {job.status}."

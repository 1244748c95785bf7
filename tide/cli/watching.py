"""Following a job: a live bar in a terminal, plain lines anywhere else, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import typer

from tide.cli.client import ControlPlane, StreamMessage, UnreachableError
from tide.cli.failures import FAILED, INTERRUPTED
from tide.cli.options import Output
from tide.cli.output import duration, progress_text
from tide_core.contracts.errors import TideError

_LINE_SECONDS = 10.0
"""Without a terminal, progress is a line at most this often."""
_PATIENCE_SECONDS = 120.0
"""How long a control plane may be away (it restarts) before watching gives up."""


def follow(control: ControlPlane, job_id: str, output: Output) -> int:
    """Show a job until it ends.

    Returns:
        Exit status: 0 when it succeeded, 1 when it failed or was cancelled, 130 when a person had enough.
    """
    view = _view(output)
    try:
        with view.shown():
            for message in _messages(control, job_id):
                if message.kind == "message":
                    view.event(message.data)
                elif message.kind == "progress":
                    view.progress(message.data, _loss(control, job_id))
        job = control.get(f"/v1/jobs/{job_id}")
    except KeyboardInterrupt:
        typer.echo(
            f"\nThe job goes on. Watch it again: tide jobs watch {job_id}; end it: tide jobs cancel {job_id}",
            err=True,
        )
        return INTERRUPTED
    view.end(job)
    return 0 if job["status"] == "succeeded" else FAILED


def _messages(control: ControlPlane, job_id: str) -> Iterator[StreamMessage]:
    """All messages of a job, over as many connections as it takes."""
    control.get(f"/v1/jobs/{job_id}")  # an unknown job or address is an error at once
    last: str | None = None
    alive_at = time.monotonic()
    while True:
        try:
            for message in control.stream(f"/v1/jobs/{job_id}/events/stream", last_event_id=last):
                alive_at = time.monotonic()
                last = message.event_id or last
                if message.kind == "done":
                    return
                yield message
        except UnreachableError:
            if time.monotonic() - alive_at > _PATIENCE_SECONDS:
                raise
        time.sleep(1.0)


def _loss(control: ControlPlane, job_id: str) -> float | None:
    try:
        series = control.get(f"/v1/jobs/{job_id}/metrics", name="loss", max_points=4)["data"]
    except TideError:  # a decoration: never the reason to stop watching
        return None
    return series[0]["values"][-1] if series and series[0]["values"] else None


class View(Protocol):
    """What watching looks like."""

    def shown(self) -> AbstractContextManager[Any]:
        """The time in which it is on the screen."""

    def event(self, event: dict[str, Any]) -> None:
        """Show an event."""

    def progress(self, progress: dict[str, Any], loss: float | None) -> None:
        """Show progress."""

    def end(self, job: dict[str, Any]) -> None:
        """Show how it ended."""


def _view(output: Output) -> View:
    if output is Output.JSON:
        return JsonView()
    return BarView() if sys.stdout.isatty() else LineView()


class JsonView:
    """One JSON object a line; the job comes last."""

    def shown(self) -> AbstractContextManager[Any]:
        """Nothing to set up."""
        return nullcontext()

    def event(self, event: dict[str, Any]) -> None:
        """The event as it came."""
        typer.echo(json.dumps(event, ensure_ascii=False))

    def progress(self, progress: dict[str, Any], loss: float | None) -> None:
        """Progress with its loss."""
        typer.echo(json.dumps({"object": "job.progress", **progress, "loss": loss}, ensure_ascii=False))

    def end(self, job: dict[str, Any]) -> None:
        """The job."""
        typer.echo(json.dumps(job, ensure_ascii=False))


class LineView:
    """Plain lines, few enough for a log file."""

    def __init__(self) -> None:
        self._last: tuple[str, float] = ("", float("-inf"))

    def shown(self) -> AbstractContextManager[Any]:
        """Nothing to set up."""
        return nullcontext()

    def event(self, event: dict[str, Any]) -> None:
        """One line."""
        typer.echo(event_line(event))

    def progress(self, progress: dict[str, Any], loss: float | None) -> None:
        """One line, unless the stage's last one is fresh and this is not its end."""
        stage, now = f"{progress['phase']}/{progress['stage']}", time.monotonic()
        is_done = progress.get("total") and progress["completed"] >= progress["total"]
        if self._last[0] == stage and now - self._last[1] < _LINE_SECONDS and not is_done:
            return
        self._last = (stage, now)
        tail = f", loss {loss:.4f}" if loss is not None and progress["phase"] == "train" else ""
        typer.echo(f"          {progress_text(progress)}{tail}")

    def end(self, job: dict[str, Any]) -> None:
        """The outcome."""
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

    def shown(self) -> AbstractContextManager[Any]:
        """While the bar lives."""
        return self._bar

    def event(self, event: dict[str, Any]) -> None:
        """A line above the bar."""
        self._bar.console.print(event_line(event), markup=False, highlight=False)

    def progress(self, progress: dict[str, Any], loss: float | None) -> None:
        """Move the bar."""
        total = progress.get("total")
        amount = f"{progress['completed']:g}" + (f"/{total:g}" if total else "") + f" {progress['unit']}"
        tails = []
        if loss is not None and progress["phase"] == "train":
            tails.append(f"loss {loss:.4f}")
        if progress.get("eta_seconds") is not None:
            tails.append(f"{duration(progress['eta_seconds'])} left")
        self._bar.update(
            self._task,
            description=progress["stage"],
            total=total,
            completed=progress["completed"],
            amount=amount,
            tail=", ".join(tails),
        )

    def end(self, job: dict[str, Any]) -> None:
        """The outcome."""
        typer.echo(outcome(job))


def event_line(event: dict[str, Any]) -> str:
    """An event as a line: time, message, and its level when that matters."""
    level = "" if event["level"] == "info" else f"{event['level'].upper()}: "
    message = event["message"]
    if event["type"] == "teacher.attested":  # the message is the fingerprint and nothing else
        message = f"The teacher attested the fingerprint {message[:16]}."
    return f"{event['created_at'][11:19]}  {level}{message}"


def outcome(job: dict[str, Any]) -> str:
    """How a job ended, and where its model lies."""
    if job["status"] == "succeeded":
        model = job["model"]["location"] if job["model"] else None
        where = f" The student is at {model}\nTry it: tide sample {model} 'your prompt'" if model else ""
        return f"{job['id']} succeeded.{where}"
    if job["error"]:
        return f"{job['id']} {job['status']}: {job['error']['message']} ({job['error']['code']})"
    return f"{job['id']} is {job['status']}."

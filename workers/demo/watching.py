"""Live progress of the demo's jobs: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tide.client import Client
from tide_core.contracts.figures import LOSS
from tide_core.contracts.resources import Job
from tide_core.contracts.states import TERMINAL_STATES, JobState, Phase

_PHASE_SHARES = {Phase.PREPARE: (0.0, 0.05), Phase.TRAIN: (0.05, 0.85), Phase.EVALUATE: (0.85, 1.0)}
"""Where a phase begins and ends on a job's bar: about its share of the time."""
_SHOWN_POINTS = 4
"""Of a series only the last point is shown; the server sends no fewer."""


@dataclass
class WatchedJob:
    """What is shown of one job."""

    job: Job
    """As the service showed it last."""
    name: str
    stage: str = ""
    done: float = 0.0
    """Share of the whole job, 0 to 1."""
    loss: float | None = None
    step: int = 0

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.job.status in TERMINAL_STATES

    def update(self, job: Job) -> None:
        """Take over what the service says."""
        self.job = job
        progress = job.progress
        if job.status is JobState.SUCCEEDED:
            self.done, self.stage = 1.0, ""
        elif progress:
            begin, end = _PHASE_SHARES[progress.phase]
            share = min(1.0, progress.completed / progress.total) if progress.total else 0.0
            self.done = max(self.done, begin + (end - begin) * share)
            self.stage = progress.stage

    @property
    def line(self) -> str:
        """Status, stage and loss in a few words."""
        parts: list[str] = [self.job.status]
        if self.stage and not self.is_ended:
            parts.append(self.stage)
        if self.loss is not None and not self.is_ended:
            parts.append(f"step {self.step} loss {self.loss:.3f}")
        return " · ".join(parts)


def watch(
    client: Client,
    views: Sequence[WatchedJob],
    console: Console,
    *,
    check: Callable[[], None],
    interval: float = 1.0,
) -> None:
    """Show all jobs until the last has ended.

    Args:
        client: asked for every job that has not ended, once an interval.
        views: one a job; they hold the jobs' last state afterwards.
        console: where to show it.
        check: called once a round; raises when the service is gone.
        interval: seconds between two rounds.
    """
    with _display(console, views) as show:
        while True:
            for view in views:
                if not view.is_ended:
                    _refresh(client, view)
            show()
            if all(view.is_ended for view in views):
                return
            check()
            time.sleep(interval)


def _refresh(client: Client, view: WatchedJob) -> None:
    view.update(client.jobs.get(view.job.id))
    if view.job.status is JobState.RUNNING:
        for series in client.jobs.metrics(view.job.id, LOSS.name, max_points=_SHOWN_POINTS).data:
            view.step, view.loss = series.steps[-1], series.values[-1]


@contextmanager
def _display(console: Console, views: Sequence[WatchedJob]) -> Iterator[Callable[[], None]]:
    if not console.is_terminal:
        yield _plain_lines(console, views)
        return
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}"),
    )
    with Progress(*columns, console=console) as progress:
        tasks = [progress.add_task(view.name, total=1.0, line=view.line, start=False) for view in views]

        def show() -> None:
            for task, view in zip(tasks, views, strict=True):
                _show_bar(progress, task, view)

        yield show


def _show_bar(progress: Progress, task: TaskID, view: WatchedJob) -> None:
    if view.job.status is not JobState.QUEUED:
        progress.start_task(task)
    progress.update(task, completed=view.done, line=view.line)
    if view.is_ended:
        progress.stop_task(task)


def _plain_lines(console: Console, views: Sequence[WatchedJob]) -> Callable[[], None]:
    """One line when a job's state or stage changes or every tenth of its way."""
    shown: dict[str, tuple[JobState, str, int]] = {}

    def show() -> None:
        for view in views:
            state = (view.job.status, view.stage, int(view.done * 10))
            if shown.get(view.job.id) != state:
                shown[view.job.id] = state
                console.print(f"{view.name}: {view.done:4.0%} {view.line}", markup=False, highlight=False)

    return show

"""Live progress of the demo's jobs: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from workers.demo.client import ENDED, DemoClient

_PHASE_SHARES = {"prepare": (0.0, 0.05), "train": (0.05, 0.85), "evaluate": (0.85, 1.0)}
"""Where a phase begins and ends on a job's bar: about its share of the time."""


@dataclass
class JobView:
    """What is shown of one job."""

    job_id: str
    name: str
    status: str = "queued"
    stage: str = ""
    done: float = 0.0
    """Share of the whole job, 0 to 1."""
    loss: float | None = None
    step: int = 0
    job: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    def update(self, job: dict[str, Any]) -> None:
        """Take over what the service says."""
        self.job = job
        self.status = job["status"]
        progress = job.get("progress")
        if self.status == "succeeded":
            self.done, self.stage = 1.0, ""
        elif progress:
            begin, end = _PHASE_SHARES[progress["phase"]]
            total = progress.get("total") or 0.0
            share = min(1.0, progress["completed"] / total) if total else 0.0
            self.done = max(self.done, begin + (end - begin) * share)
            self.stage = progress["stage"]

    @property
    def line(self) -> str:
        """Status, stage and loss in a few words."""
        parts = [self.status]
        if self.stage and not self.is_ended:
            parts.append(self.stage)
        if self.loss is not None and not self.is_ended:
            parts.append(f"step {self.step} loss {self.loss:.3f}")
        return " · ".join(parts)


def watch(
    client: DemoClient,
    views: Sequence[JobView],
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


def _refresh(client: DemoClient, view: JobView) -> None:
    view.update(client.job(view.job_id))
    if view.status == "running":
        steps, values = client.series(view.job_id, "loss")
        if steps:
            view.step, view.loss = steps[-1], values[-1]


@contextmanager
def _display(console: Console, views: Sequence[JobView]) -> Iterator[Callable[[], None]]:
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


def _show_bar(progress: Progress, task: TaskID, view: JobView) -> None:
    if view.status != "queued":
        progress.start_task(task)
    progress.update(task, completed=view.done, line=view.line)
    if view.is_ended:
        progress.stop_task(task)


def _plain_lines(console: Console, views: Sequence[JobView]) -> Callable[[], None]:
    """One line when a job's state or stage changes or every tenth of its way."""
    shown: dict[str, tuple[str, str, int]] = {}

    def show() -> None:
        for view in views:
            state = (view.status, view.stage, int(view.done * 10))
            if shown.get(view.job_id) != state:
                shown[view.job_id] = state
                console.print(f"{view.name}: {view.done:4.0%} {view.line}", markup=False, highlight=False)

    return show

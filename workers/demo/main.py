"""`tide demo`: two distillations and their controls on this machine, over HTTP like any client.

Read `run` from top to bottom. The setting (rows, steps, weights, the metric that counts) is in `setting.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tide_core.contracts.errors import TideError
from workers.demo import report
from workers.demo.client import DemoClient
from workers.demo.comparison import JobOutcome, compare
from workers.demo.conversations import write_corpus
from workers.demo.server import Service, own_service
from workers.demo.setting import (
    ALL_JOBS,
    CORPUS_SEED,
    MAIN_JOBS,
    METRIC_THAT_COUNTS,
    ROW_COUNTS,
    STEPS,
    DemoJob,
    job_spec,
)
from workers.demo.watching import JobView, watch
from workers.evaluation.report import read_sequences
from workers.storage import read_bytes

JOBS_AT_ONCE = 2
"""Two trainers of one thread each keep two cores busy."""


class DemoFailedError(TideError):
    """A job of the demo did not succeed."""

    code = "demo_failed"


@dataclass(frozen=True)
class DemoRequest:
    """What the user asked for.

    Attributes:
        folder: corpus, report, and the data of the demo's own service.
        url: a running service to use; None starts one for the demo.
        all_variants: run all eight combinations of variant and pipeline.
        steps: optimiser steps of each job.
    """

    folder: Path
    url: str | None = None
    all_variants: bool = False
    steps: int = STEPS


def run(request: DemoRequest, console: Console) -> None:
    """Make the corpus, post the jobs, watch them, compare them.

    Raises:
        TideError: a job failed or the service is not to be had; what was reached stays in the folder.
    """
    began = time.monotonic()
    jobs = ALL_JOBS if request.all_variants else MAIN_JOBS
    folder = request.folder.resolve()
    corpus = write_corpus(folder / "corpus", ROW_COUNTS, CORPUS_SEED)
    with _service(request, folder) as service, DemoClient(service.url) as client:
        console.print(f"Watch it at {service.url}   (Ctrl-C ends everything)", highlight=False)
        console.print(f"The metric that counts, named beforehand: {METRIC_THAT_COUNTS}", highlight=False)
        views = _submit(client, jobs, folder / "corpus", request.steps)
        try:
            watch(client, views, console, check=service.check)
        except BaseException:
            _cancel(client, views)
            raise
        outcomes = [_outcome(job, view) for job, view in zip(jobs, views, strict=True)]
    comparisons = compare(outcomes)
    report.write(folder, comparisons, outcomes, corpus)
    report.show(console, comparisons, outcomes)
    console.print(f"Report: {folder / 'report.md'}", highlight=False, soft_wrap=True)
    console.print(f"The demo took {time.monotonic() - began:.0f} s.", highlight=False)


@contextmanager
def _service(request: DemoRequest, folder: Path) -> Iterator[Service]:
    """The service that was named, or one of the demo's own."""
    if request.url is not None:
        yield Service(request.url)
        return
    with own_service(folder / "service", active_jobs=JOBS_AT_ONCE) as service:
        yield service


def _submit(client: DemoClient, jobs: Sequence[DemoJob], corpus: Path, steps: int) -> list[JobView]:
    views: list[JobView] = []
    try:
        for job in jobs:
            posted = client.submit(job_spec(job, corpus, steps=steps))
            views.append(JobView(posted["id"], job.name))
    except BaseException:
        _cancel(client, views)
        raise
    return views


def _cancel(client: DemoClient, views: Sequence[JobView]) -> None:
    """Leave nothing running in somebody else's service."""
    for view in views:
        if not view.is_ended:
            client.cancel(view.job_id)


def _outcome(job: DemoJob, view: JobView) -> JobOutcome:
    if view.status != "succeeded":
        error = view.job.get("error") or {}
        raise DemoFailedError(
            f"The job '{job.name}' ({view.job_id}) ended as {view.status}: "
            f"{error.get('message', 'no reason was given')} Its log: `tide jobs logs {view.job_id}`."
        )
    found = view.job["result"]
    return JobOutcome(
        job=job,
        job_id=view.job_id,
        model=view.job["model"]["location"],
        report=found,
        sequences=read_sequences(read_bytes(found["sequences"])),
    )

"""`tide demo`: a whole distillation on this machine, over HTTP like any client, beside its controls."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from tide.client import Client
from tide.errors import RequestConflictError
from workers.demo import presentation
from workers.demo.conversations import write_corpus
from workers.demo.results import FinishedJob, group_outcomes, read_finished
from workers.demo.server import Service, own_service
from workers.demo.setting import (
    ALL_JOBS,
    CORPUS_SEED,
    MAIN_JOBS,
    METRIC_THAT_COUNTS,
    ROW_COUNTS,
    SEED,
    STEPS,
    DemoJob,
    job_spec,
)
from workers.demo.watching import WatchedJob, watch

_ACTIVE_JOBS = 2
"""Jobs at once: one for each core of the smallest machine that the demo is made for."""
_INTERRUPTED = 130
_FILE_WIDTH = 120
"""Columns where no terminal sets them: the tables fit."""


@dataclass(frozen=True)
class DemoRequest:
    """What the user asked for.

    Attributes:
        folder: corpus, report, and the data of the demo's own service.
        url: a running service; None starts one of the demo's own.
        all_variants: all four objectives with both teachers, eight jobs.
        steps: optimiser steps a job.
    """

    folder: Path
    url: str | None = None
    all_variants: bool = False
    steps: int = STEPS


def run(options: DemoRequest, *, is_for_programs: bool = False) -> dict[str, Any]:
    """Run the demo; the report is written to the folder, shown, and returned as JSON values.

    Args:
        options: what the user asked for.
        is_for_programs: print progress to standard error, and no table.

    Raises:
        DemoServiceError: the demo's own service did not start or ended early.
        DemoJobError: a job failed.
        ApiError: the service refused a request, or cannot be reached.
        SystemExit: 130 after Ctrl-C (or SIGTERM, or SIGHUP), once everything is ended.
    """
    console = Console(stderr=is_for_programs)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with _endings_as_interrupt(), _service(options.url, folder, console) as service:
            jobs, facts = _distil(service, folder, options, console)
    except KeyboardInterrupt:
        ended = "" if options.url is not None else " and the demo's own service is ended"
        console.print(f"Interrupted: the jobs are cancelled{ended}.")
        raise SystemExit(_INTERRUPTED) from None
    facts["seconds in all"] = round(time.monotonic() - began)
    found = group_outcomes(jobs)
    presentation.write(folder, found, facts)
    if not is_for_programs:
        presentation.show(console, found)
    console.print(f"{facts['seconds in all']} s in all. Report: {folder / 'report.md'}", highlight=False)
    return presentation.as_json(found, facts)


@contextmanager
def _endings_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the demo as Ctrl-C does: with everything that it started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _service(url: str | None, folder: Path, console: Console) -> Iterator[Service]:
    if url is not None:
        with Client(url, retries=0) as client:  # a wrong address or token is told before anything is written
            next(iter(client.jobs.list(page_size=1)), None)
        yield Service(url.rstrip("/"))
        return
    console.print("Starting Ray and the service (`tide up`) ...")
    with own_service(folder / "service", active_jobs=_ACTIVE_JOBS) as service:
        yield service
        console.print("Ending the service ...")


def _distil(
    service: Service, folder: Path, options: DemoRequest, console: Console
) -> tuple[list[FinishedJob], dict[str, Any]]:
    """Write the corpus, post the jobs, watch them to their end."""
    console.print(f"Page with live curves: {service.url}/", highlight=False)
    corpus = write_corpus(folder / "corpus", ROW_COUNTS, CORPUS_SEED)
    demo_jobs = ALL_JOBS if options.all_variants else MAIN_JOBS
    console.print(
        f"Metric that counts: {METRIC_THAT_COUNTS}. {len(demo_jobs)} jobs of {options.steps} steps."
    )
    with Client(service.url) as client:
        views: list[WatchedJob] = []
        try:
            for demo_job in demo_jobs:
                job = client.jobs.create(job_spec(demo_job, folder / "corpus", steps=options.steps))
                views.append(WatchedJob(job, demo_job.name))
            watch(client, views, console, check=service.check)
        except BaseException:
            # Of its own service the demo ends everything anyway; another's must not keep on training.
            if service.process is None:
                _cancel(client, views)
            raise
    jobs = [read_finished(demo_job, view.job) for demo_job, view in zip(demo_jobs, views, strict=True)]
    return jobs, _facts(corpus, demo_jobs, options.steps)


def _cancel(client: Client, views: Sequence[WatchedJob]) -> None:
    for view in views:
        try:
            if not view.is_ended:
                client.jobs.cancel(view.job.id)
        except RequestConflictError:
            if not client.jobs.get(view.job.id).is_ended:
                raise


def _facts(corpus: dict[str, Any], demo_jobs: Sequence[DemoJob], steps: int) -> dict[str, Any]:
    splits = {name: facts["content_hash"] for name, facts in corpus["splits"].items()}
    return {
        "seed of the jobs": SEED,
        "steps": steps,
        "jobs": ", ".join(job.name for job in demo_jobs),
        "documentation": f"Python standard library ({corpus['documentation_licence']})",
        "content hashes": splits,
        "python": sys.version.split()[0],
    }

"""`tide jobs`: submit, look at and steer jobs over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from tide.cli.failures import clear_errors
from tide.cli.options import JobArgument, Output, OutputOption, UrlOption

if TYPE_CHECKING:
    from tide.client import Client, Jobs
    from tide_core.contracts.resources import Job

app = typer.Typer(help="Submit, watch and steer jobs.", no_args_is_help=True, rich_markup_mode=None)

_FOLLOW_SECONDS = 2.0


@app.command()
def submit(
    spec: Annotated[str, typer.Argument(help="Job spec, a YAML or JSON file; '-' reads standard input.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            help="Sent again with the same key and spec, the request gives the same job, not a new one.",
        ),
    ] = None,
    url: UrlOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a job. Relative paths in its spec are paths on the server."""
    with clear_errors(output):
        from tide.cli.opening import open_client
        from tide.cli.output import print_json
        from tide.cli.spec_file import read_spec

        body = read_spec(spec)
        with open_client(url) as client:
            job = client.jobs.create(body, idempotency_key=key)
            if watch:
                typer.echo(f"Submitted {job.id}.", err=output is Output.JSON)
                _follow(client, job.id, output)
            elif output is Output.JSON:
                print_json(job)
            else:
                typer.echo(f"Submitted {job.id}.\nFollow it with: tide jobs watch {job.id}")


@app.command("list")
def list_jobs(
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Show at most this many jobs, the newest.")
    ] = 20,
    url: UrlOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List jobs, newest first."""
    with clear_errors(output):
        from tide.cli.opening import open_client
        from tide.cli.output import age, print_json, print_table, progress_text
        from tide.operations import PAGE_SIZE

        with open_client(url) as client:
            found = list(islice(client.jobs.list(page_size=min(PAGE_SIZE, limit)), limit))
        if output is Output.JSON:
            print_json(found)
            return
        rows = [
            [
                job.id,
                job.name or "-",
                job.status,
                job.variant or "custom",
                progress_text(job.progress) if job.finished_at is None else "-",
                age(job.created_at),
            ]
            for job in found
        ]
        titles = ["ID", "NAME", "STATUS", "VARIANT", "PROGRESS", "AGE"]
        print_table(titles, rows, when_empty="There are no jobs yet. `tide jobs submit SPEC` makes one.")


@app.command()
def get(job_id: JobArgument, url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show one job."""
    with clear_errors(output):
        from tide.cli.opening import open_client
        from tide.cli.output import print_json

        with open_client(url) as client:
            job = client.jobs.get(job_id)
        if output is Output.JSON:
            print_json(job)
        else:
            _describe(job)


@app.command()
def watch(job_id: JobArgument, url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """Follow a job until it ends. Exit status: 0 succeeded, 1 failed or cancelled, 130 on Ctrl-C."""
    with clear_errors(output):
        from tide.cli.opening import open_client

        with open_client(url) as client:
            _follow(client, job_id, output)


@app.command()
def logs(
    job_id: JobArgument,
    *,
    phase: Annotated[
        str | None, typer.Option(help="prepare, train or evaluate. Default: the latest phase that ran.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Number of the attempt. Default: the present one.")
    ] = None,
    tail: Annotated[int, typer.Option(min=1, help="Show at most this many lines, the last ones.")] = 1000,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new lines until the job ends.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what a job's processes printed. With -o json, each line is a JSON object."""
    with clear_errors(output):
        import time

        from tide.cli.opening import open_client

        with open_client(url) as client:
            shown = unfinished = ""
            while True:
                is_over = client.jobs.get(job_id).is_ended
                text = client.jobs.logs(job_id, phase=phase, attempt=attempt, tail=tail)
                unfinished = print_lines(unfinished + _news(shown, text), output)
                shown = text
                if not follow or is_over:
                    if unfinished:
                        print_lines(unfinished + "\n", output)
                    return
                time.sleep(_FOLLOW_SECONDS)


@app.command()
def cancel(job_id: JobArgument, url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """End a job; its checkpoints stay."""
    _steer(lambda jobs: jobs.cancel(job_id), url, output)


@app.command()
def pause(job_id: JobArgument, url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """Save a running job and give its resources back."""
    _steer(lambda jobs: jobs.pause(job_id), url, output)


@app.command()
def resume(job_id: JobArgument, url: UrlOption = None, output: OutputOption = Output.TABLE) -> None:
    """Let a paused job go on from its last checkpoint."""
    _steer(lambda jobs: jobs.resume(job_id), url, output)


def _steer(action: Callable[[Jobs], Job], url: str | None, output: Output) -> None:
    with clear_errors(output):
        from tide.cli.opening import open_client
        from tide.cli.output import print_json

        with open_client(url) as client:
            job = action(client.jobs)
        if output is Output.JSON:
            print_json(job)
        else:
            typer.echo(f"{job.id} is {job.status}.")


def _follow(client: Client, job_id: str, output: Output) -> None:
    from tide.cli.watching import follow

    raise typer.Exit(follow(client, job_id, output))


def print_lines(text: str, output: Output) -> str:
    """Print the whole lines of a text, and return what follows the last of them."""
    whole, _, unfinished = text.rpartition("\n")
    for line in whole.split("\n") if whole or text.startswith("\n") else ():
        typer.echo(json.dumps({"line": line}, ensure_ascii=False) if output is Output.JSON else line)
    return unfinished


def _news(shown: str, text: str) -> str:
    """The part of a growing text that was not shown yet; the tail may have cut its beginning off."""
    if text.startswith(shown):
        return text[len(shown) :]
    last = shown.rstrip("\n").rpartition("\n")[2]
    before, found, after = text.rpartition(last + "\n")
    return after if found and last else text if not before else after


def _describe(job: Job) -> None:
    from tide.cli.output import age, progress_text

    facts = {
        "id": job.id,
        "name": job.name,
        "status": job.status,
        "error": f"{job.error.code}: {job.error.message}" if job.error else None,
        "variant": job.variant or "custom",
        "pipeline": job.pipeline,
        "teacher": f"{job.teacher} ({job.spec.teacher.model})",
        "progress": progress_text(job.progress) if job.progress else None,
        "attempt": str(job.attempt),
        "created": f"{job.created_at.isoformat()} ({age(job.created_at)} ago)",
        "model": job.model.location if job.model else None,
    }
    for name, value in facts.items():
        if value is not None:
            typer.echo(f"{name + ':':<10}{value}")

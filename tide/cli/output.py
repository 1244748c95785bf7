"""Printing results: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tide_core.contracts.resources import JobProgress


def print_json(value: object) -> None:
    """Print one JSON document: JSON values, a model, or a list of them."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_json_of))


def json_line(value: object) -> str:
    """A JSON document in one line."""
    return json.dumps(value, ensure_ascii=False, default=_json_of)


def _json_of(model: Any) -> Any:
    return model.model_dump(mode="json")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, when_empty: str) -> None:
    """Print a plain table, as wide as its cells need: it can be piped, grepped and cut."""
    if not rows:
        typer.echo(when_empty)
        return
    lines = [list(titles), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        typer.echo("  ".join(cells).rstrip())


def age(moment: datetime | None) -> str:
    """How long ago a moment was: "5s", "12m", "3h", "2d"."""
    if moment is None:
        return "-"
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    return duration(seconds)


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def progress_text(progress: JobProgress | None) -> str:
    """Progress in one cell: "training 40/100 steps, 2m05s left"."""
    if progress is None:
        return "-"
    amount = f"{progress.completed:g}"
    if progress.total:
        amount += f"/{progress.total:g}"
    left = progress.eta_seconds
    tail = f", {duration(left)} left" if left is not None else ""
    return f"{progress.stage} {amount} {progress.unit}{tail}"

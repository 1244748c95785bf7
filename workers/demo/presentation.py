"""The demo's outcome for people: a table in the terminal, `report.md` and `report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tide_core.contracts.objective import Pipeline
from workers.demo.results import CONTROL, FIGURES, NELBO, Comparison, FinishedJob, PipelineOutcome
from workers.demo.setting import METRIC_THAT_COUNTS

TEACHERS = {
    Pipeline.CROSS_TOKENIZER: "Mixture-of-experts teacher, another tokenizer",
    Pipeline.SHARED_TOKENIZER: "Dense teacher, shared tokenizer",
}
SAMPLE_PROMPT = "Reverse: p l a n e t"


def show(console: Console, outcomes: Sequence[PipelineOutcome]) -> None:
    """Print a table a teacher, what the intervals say, and where the students lie."""
    for outcome in outcomes:
        table = Table(title=TEACHERS[outcome.pipeline], title_justify="left")
        table.add_column("model")
        for figure in FIGURES:
            table.add_column(figure.title, justify="right")
        for row in outcome.rows:
            table.add_row(row.name, *map(_number, row.values))
        console.print(table)
        for line in (*_comparison_lines(outcome), *_size_lines(outcome)):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        console.print()
    best = _sampled_job(outcomes)
    if best is not None:
        console.print("Sample from a distilled student:", markup=False)
        console.print(f"  {sample_command(best)}", markup=False, highlight=False, soft_wrap=True)


def markdown(outcomes: Sequence[PipelineOutcome], facts: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = ["# Demo", "", f"Metric that counts, named beforehand: {METRIC_THAT_COUNTS}.", ""]
    for outcome in outcomes:
        lines += [f"## {TEACHERS[outcome.pipeline]}", ""]
        lines.append("| model | " + " | ".join(figure.title for figure in FIGURES) + " |")
        lines.append("| --- |" + " ---: |" * len(FIGURES))
        lines += [f"| {row.name} | " + " | ".join(map(_number, row.values)) + " |" for row in outcome.rows]
        lines += ["", *(f"- {line}" for line in (*_comparison_lines(outcome), *_size_lines(outcome))), ""]
        lines += _group_lines(outcome)
    best = _sampled_job(outcomes)
    if best is not None:
        lines += ["## A student to try", "", "```", sample_command(best), "```", ""]
    lines += ["## How", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    return "\n".join(lines)


def as_json(outcomes: Sequence[PipelineOutcome], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "object": "demo_report",
        "metric_that_counts": METRIC_THAT_COUNTS,
        "facts": dict(facts),
        "pipelines": {
            outcome.pipeline.value: {
                "models": {
                    row.name: dict(zip((f.title for f in FIGURES), row.values, strict=True))
                    for row in outcome.rows
                },
                "comparisons": [_comparison_json(comparison) for comparison in outcome.comparisons],
                "jobs": {
                    job.demo_job.variant.value: {
                        "id": job.job.id,
                        "model": job.job.model.location if job.job.model else None,
                        "report": job.report,
                    }
                    for job in outcome.jobs
                },
            }
            for outcome in outcomes
        },
    }


def write(folder: Path, outcomes: Sequence[PipelineOutcome], facts: Mapping[str, Any]) -> None:
    """Write `report.json` and `report.md` to a folder."""
    (folder / "report.json").write_text(json.dumps(as_json(outcomes, facts), indent=2) + "\n")
    (folder / "report.md").write_text(markdown(outcomes, facts))


def sample_command(job: FinishedJob) -> str:
    """The line that samples from a job's student."""
    location = job.job.model.location if job.job.model else "CHECKPOINT"
    return f'tide sample "{location}" "{SAMPLE_PROMPT}"'


def _sampled_job(outcomes: Sequence[PipelineOutcome]) -> FinishedJob | None:
    """The distilled student with the lowest NELBO."""
    jobs = [job for outcome in outcomes for job in outcome.jobs if job.demo_job.variant is not CONTROL]
    key = NELBO.keys[0]
    return min(jobs, key=lambda job: job.report["models"]["student"][key], default=None)


def _comparison_lines(outcome: PipelineOutcome) -> list[str]:
    lines = []
    for comparison in outcome.comparisons:
        result = comparison.result
        mark = "*" if comparison.figure is NELBO else " "
        lines.append(
            f"{mark} {comparison.variant} against control, {comparison.figure.title}: "
            f"{result.difference:+.4f} [{result.low:+.4f}, {result.high:+.4f}], p = {result.p_value:.4f}: "
            f"distillation {_verdict_text(comparison)}"
        )
    if not lines:
        lines.append("No intervals: the per-sequence figures cannot be read from this machine.")
    return lines


def _verdict_text(comparison: Comparison) -> str:
    verdict = comparison.verdict
    return "made no clear difference" if verdict == "no clear difference" else verdict


def _size_lines(outcome: PipelineOutcome) -> list[str]:
    lines = []
    for job in outcome.jobs:
        sizes, speeds = job.report.get("sizes", {}), job.report.get("speeds", {})
        parts = [
            f"student {sizes['student_parameters'] / 1e6:.2f} M parameters"
            if "student_parameters" in sizes
            else "",
            f"teacher {sizes['teacher_parameters'] / 1e6:.2f} M" if sizes.get("teacher_parameters") else "",
            f"{speeds['seconds_per_step']:.3f} s/step" if "seconds_per_step" in speeds else "",
            f"{speeds['tokens_per_second']:.0f} tokens/s" if "tokens_per_second" in speeds else "",
            f"waited for the teacher {speeds['teacher_wait_ratio']:.0%} of the time"
            if speeds.get("teacher_wait_ratio") is not None
            else "",
        ]
        lines.append(f"{job.demo_job.variant}: " + ", ".join(part for part in parts if part))
    return lines


def _group_lines(outcome: PipelineOutcome) -> list[str]:
    """Exact match by kind of task, one row a model."""
    columns: dict[str, Mapping[str, Any]] = {}
    for job in outcome.jobs:
        for model, figures in job.report["models"].items():
            name = str(job.demo_job.variant) if model == "student" else model
            if "exact_match" in figures:
                columns.setdefault(name, figures["exact_match"].get("by_group", {}))
    kinds = sorted({kind for groups in columns.values() for kind in groups})
    if not kinds:
        return []
    lines = ["| exact match | " + " | ".join(kinds) + " |", "| --- |" + " ---: |" * len(kinds)]
    for name, groups in columns.items():
        rates = (f"{groups[kind]['rate']:.2f}" if kind in groups else "" for kind in kinds)
        lines.append(f"| {name} | " + " | ".join(rates) + " |")
    return [*lines, ""]


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "variant": comparison.variant.value,
        "figure": comparison.figure.title,
        "verdict": comparison.verdict,
        **asdict(comparison.result),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

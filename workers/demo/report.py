"""The demo's result as tables for a terminal and as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tide_core.contracts.objective import Pipeline
from workers.demo.comparison import COMPARED, Gain, JobOutcome, PipelineComparison
from workers.demo.setting import METRIC_THAT_COUNTS, SAMPLE_PROMPT, SEED

_TITLES = {
    Pipeline.CROSS_TOKENIZER: "Mixture-of-experts teacher, another tokenizer (pipeline A)",
    Pipeline.SHARED_TOKENIZER: "Dense teacher, shared tokenizer (pipeline B)",
}


def show(console: Console, comparisons: Sequence[PipelineComparison], outcomes: Sequence[JobOutcome]) -> None:
    """Print a table a pipeline, the verdicts, and where the models lie."""
    for comparison in comparisons:
        console.print(_table(comparison))
        for variant, gains in comparison.gains.items():
            for gain in gains:
                console.print(f"  {variant}: {_sentence(gain)}", markup=False, highlight=False)
    for line in _facts(outcomes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(
    folder: Path, comparisons: Sequence[PipelineComparison], outcomes: Sequence[JobOutcome], corpus: Any
) -> None:
    """Write `report.json` and `report.md` into a folder."""
    content = {
        "metric_that_counts": METRIC_THAT_COUNTS,
        "seed": SEED,
        "corpus": corpus,
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "jobs": [
            {"name": o.job.name, "id": o.job_id, "model": o.model, "report": dict(o.report)} for o in outcomes
        ],
    }
    (folder / "report.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (folder / "report.md").write_text(markdown(comparisons, outcomes))


def markdown(comparisons: Sequence[PipelineComparison], outcomes: Sequence[JobOutcome]) -> str:
    """The same tables for a reader."""
    lines = [f"# Distilled against control\nThe metric that counts, named beforehand: {METRIC_THAT_COUNTS}."]
    for comparison in comparisons:
        lines += [
            f"\n## {_TITLES[comparison.pipeline]}\n",
            "| model | " + " | ".join(COMPARED.values()) + " |",
        ]
        lines.append("| --- |" + " --- |" * len(COMPARED))
        for row in comparison.rows:
            lines.append(f"| {row.model} | " + " | ".join(map(_number, row.figures.values())) + " |")
        lines.append("")
        for variant, gains in comparison.gains.items():
            lines += [f"- `{variant}`: {_sentence(gain)}" for gain in gains]
    return "\n".join([*lines, "", *_facts(outcomes), ""])


def _table(comparison: PipelineComparison) -> Table:
    table = Table(title=_TITLES[comparison.pipeline], title_justify="left", title_style="bold")
    table.add_column("model")
    for title in COMPARED.values():
        table.add_column(title, justify="right")
    for row in comparison.rows:
        table.add_row(row.model, *map(_number, row.figures.values()))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _sentence(gain: Gain) -> str:
    result = gain.result
    return (
        f"{COMPARED[gain.figure]} {result.difference:+.4f} against the control "
        f"[{result.low:+.4f}, {result.high:+.4f}], p = {result.p_value:.2g}: {gain.verdict}"
    )


def _facts(outcomes: Sequence[JobOutcome]) -> list[str]:
    """Sizes, speeds, and how to go on."""
    lines = ["Students and controls had the same data, order, masks, initial weights and number of steps."]
    for outcome in outcomes:
        sizes, speeds = outcome.report["sizes"], outcome.report["speeds"]
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in sorted(speeds.items()))
        lines.append(f"{outcome.job.name}: {sizes['student_parameters']:,} parameters; {told}")
        lines.append(f"  model: {outcome.model}")
    best = next((o for o in outcomes if o.job.variant != "none"), None)
    if best is not None:
        lines.append(f"Try it: tide sample {best.model} {json.dumps(SAMPLE_PROMPT)}")
    return lines

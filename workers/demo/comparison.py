"""From the jobs' reports to the demo's verdict (pure: no request, no clock)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tide_core.contracts.objective import Pipeline, Variant
from tide_core.studies.paired import PairedResult, paired_bootstrap
from workers.demo.setting import METRIC_THAT_COUNTS, DemoJob
from workers.evaluation.tally import RATIOS

START, STUDENT, TEACHER = "start", "student", "teacher"
_BOOTSTRAP_SEED = 0
COMPARED: Mapping[str, str] = {
    "nelbo_per_token": METRIC_THAT_COUNTS,
    "masked_token_accuracy": "masked-token accuracy",
    "exact_match": "exact match",
    "divergence": "KL to the teacher",
}
"""Figure -> its name in the table. The first is the metric that counts."""
HIGHER_IS_BETTER = frozenset({"masked_token_accuracy", "exact_match"})
_DIVERGENCE = {
    Pipeline.CROSS_TOKENIZER: "forward_chunk_kl_to_teacher",
    Pipeline.SHARED_TOKENIZER: "forward_kl_to_teacher",
}


@dataclass(frozen=True)
class JobOutcome:
    """A job that succeeded, with its report and its figures a sequence."""

    job: DemoJob
    job_id: str
    model: str
    report: Mapping[str, Any]
    sequences: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ModelRow:
    """One line of the table: a model of one pipeline and its figures; None where it has none."""

    model: str
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Gain:
    """Distilled minus control on one figure, over the same held-out sequences.

    Attributes:
        figure: name of the figure.
        result: difference and its bootstrap interval.
        verdict: "helped", "hurt" or "no clear difference" (the interval holds zero).
    """

    figure: str
    result: PairedResult
    verdict: str


@dataclass(frozen=True)
class PipelineComparison:
    """All models of one pipeline, and each distilled student against its control."""

    pipeline: Pipeline
    rows: tuple[ModelRow, ...]
    gains: Mapping[str, tuple[Gain, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for report.json."""
        return asdict(self)


def compare(outcomes: Sequence[JobOutcome]) -> list[PipelineComparison]:
    """One comparison a pipeline, from the jobs of the demo; pipelines without a job are left out."""
    found = []
    for pipeline in Pipeline:
        own = [outcome for outcome in outcomes if outcome.job.pipeline is pipeline]
        if own:
            found.append(_pipeline(pipeline, own))
    return found


def _pipeline(pipeline: Pipeline, outcomes: Sequence[JobOutcome]) -> PipelineComparison:
    first = outcomes[0].report["models"]
    control = next((o for o in outcomes if o.job.variant is Variant.NONE), None)
    distilled = [o for o in outcomes if o.job.variant is not Variant.NONE]
    rows = [ModelRow("start", _figures(first[START], pipeline))]
    if control is not None:
        rows.append(ModelRow("control (none)", _figures(control.report["models"][STUDENT], pipeline)))
    rows += [
        ModelRow(f"distilled ({o.job.variant})", _figures(o.report["models"][STUDENT], pipeline))
        for o in distilled
    ]
    rows.append(ModelRow("teacher", _figures(first[TEACHER], pipeline)))
    gains = {}
    if control is not None:
        gains = {o.job.variant.value: _gains(o, control, pipeline) for o in distilled}
    return PipelineComparison(pipeline, tuple(rows), gains)


def _figures(model: Mapping[str, Any], pipeline: Pipeline) -> dict[str, float | None]:
    values = dict(model)
    values["exact_match"] = model["exact_match"]["rate"] if "exact_match" in model else None
    values["divergence"] = model.get(_DIVERGENCE[pipeline])
    return {name: values.get(name) for name in COMPARED}


def _gains(distilled: JobOutcome, control: JobOutcome, pipeline: Pipeline) -> tuple[Gain, ...]:
    found = []
    for figure in COMPARED:
        pair = _paired_columns(figure, pipeline, distilled.sequences, control.sequences)
        if pair is not None:
            result = paired_bootstrap(pair[0], pair[1], weights=pair[2], seed=_BOOTSTRAP_SEED)
            found.append(Gain(figure, result, verdict(result, figure in HIGHER_IS_BETTER)))
    return tuple(found)


def _paired_columns(
    figure: str,
    pipeline: Pipeline,
    distilled: Mapping[str, NDArray[np.float64]],
    control: Mapping[str, NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Numerators of both and their common denominator; None when the figure was not measured.

    Sequences without anything to compare (a denominator of zero) belong to neither model's figure.
    """
    if figure == "exact_match":
        numerator, denominator = "exact_match", None
    else:
        ratio = RATIOS[_DIVERGENCE[pipeline] if figure == "divergence" else figure]
        numerator, denominator = ratio.numerator, ratio.denominator
    if f"{STUDENT}/{numerator}" not in distilled:
        return None
    one, other = distilled[f"{STUDENT}/{numerator}"], control[f"{STUDENT}/{numerator}"]
    weights = np.ones_like(one) if denominator is None else distilled[f"{STUDENT}/{denominator}"]
    asked = weights > 0
    return one[asked], other[asked], weights[asked]


def verdict(result: PairedResult, higher_is_better: bool) -> str:
    """What the interval says about the distilled student against its control."""
    if result.low <= 0.0 <= result.high:
        return "no clear difference"
    return "helped" if (result.difference > 0) == higher_is_better else "hurt"

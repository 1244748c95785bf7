"""The report is made of whatever the evaluators found, in the format that readers know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.tiny_runs import tiny_spec
from tide_core.contracts.figures import Measure
from tide_core.contracts.objective import Pipeline, Variant
from tide_core.contracts.reporting import AttemptBrief
from tide_core.contracts.states import Phase
from tide_core.evaluation.evaluator import Findings
from workers.evaluation.report import build_report, read_sequences, write_report

FINDINGS = {
    "held_out": Findings(
        figures={"student": {"nelbo_per_token": 1.5}, "teacher": {"masked_token_accuracy": 0.5}},
        columns={"student": {"nll": np.array([1.0, 2.0])}},
        measures={Measure.NELBO: 1.5},
        facts={"sequences": 2},
    ),
    "exact_match": Findings(
        figures={"student": {"exact_match": {"rate": 1.0, "count": 1, "by_group": {}}}},
        columns={"student": {"exact_match": np.array([1.0])}},
        measures={Measure.EXACT_MATCH: 1.0},
    ),
    "benchmark": Findings(
        figures={"student": {"arc": 0.25}},
        columns={"student": {"arc": np.array([0.0, 1.0, 0.0, 0.0])}},
        measures={},
        facts={"version": 1},
    ),
}


def test_a_report_joins_the_findings_of_all_evaluators(tmp_path: Path) -> None:
    spec = tiny_spec(Variant.TIDE_CROSS, Pipeline.CROSS_TOKENIZER)
    brief = AttemptBrief(job_id="job", attempt=1, phase=Phase.EVALUATE, spec=spec, storage=str(tmp_path))
    report = build_report(brief, FINDINGS, {"student_parameters": 7})
    write_report(brief, report, FINDINGS)
    written = json.loads(Path(brief.folder.report).read_text())
    assert written == report
    assert report == {
        "object": "report",
        "job_id": "job",
        "variant": "tide_cross",
        "pipeline": "cross_tokenizer",
        "seed": 7,
        "held_out": {"sequences": 2},
        "benchmark": {"version": 1},
        "models": {
            "student": {
                "nelbo_per_token": 1.5,
                "exact_match": {"rate": 1.0, "count": 1, "by_group": {}},
                "arc": 0.25,
            },
            "teacher": {"masked_token_accuracy": 0.5},
        },
        "sequences": f"{tmp_path}/jobs/job/sequences.npz",
        "sizes": {"student_parameters": 7},
        "speeds": {},
    }
    arrays = read_sequences(Path(brief.folder.sequences).read_bytes())
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "student/nll": [1.0, 2.0],
        "student/exact_match": [1.0],
        "student/arc": [0.0, 1.0, 0.0, 0.0],
    }

"""The report of a job: figures of every model, sizes and speeds; per-item values in a file beside it.

In: what the evaluators found, and the manifest. Out: `report.json` and `sequences.npz`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tide_core.contracts.reporting import AttemptBrief
from tide_core.evaluation.evaluator import Findings
from workers.storage import exists, read_bytes, write_bytes


def build_report(
    brief: AttemptBrief, findings: Mapping[str, Findings], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as JSON values: `models` maps each model to its figures.

    Args:
        brief: the attempt.
        findings: by the evaluator's name.
        sizes: of the models and the data.
    """
    models: dict[str, dict[str, Any]] = {}
    for found in findings.values():
        for name, figures in found.figures.items():
            models.setdefault(name, {}).update(figures)
    spec = brief.spec
    return {
        "object": "report",
        "job_id": brief.job_id,
        "variant": spec.variant.value if spec.variant else None,
        "pipeline": spec.pipeline,
        "seed": spec.seed,
        "models": models,
        "sequences": brief.folder.sequences,
        "sizes": dict(sizes),
        "speeds": training_facts(brief).get("speeds", {}),
    } | {name: dict(found.facts) for name, found in findings.items() if found.facts}


def training_facts(brief: AttemptBrief) -> dict[str, Any]:
    """What the train phase wrote into the manifest: steps, seconds, speeds; empty without a manifest."""
    location = brief.folder.manifest
    if not exists(location):
        return {}
    facts: dict[str, Any] = json.loads(read_bytes(location)).get("training", {})
    return facts


def write_report(brief: AttemptBrief, report: Mapping[str, Any], findings: Mapping[str, Findings]) -> None:
    """Write the per-item values, arrays `<model>/<column>`, then the report."""
    arrays = {
        f"{model}/{column}": values
        for found in findings.values()
        for model, columns in found.columns.items()
        for column, values in columns.items()
    }
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    write_bytes(brief.folder.sequences, packed.getvalue())
    write_bytes(brief.folder.report, (json.dumps(report, indent=2, sort_keys=True) + "\n").encode())


def read_sequences(content: bytes) -> dict[str, np.ndarray]:
    """The arrays that `write_report` wrote, for a paired comparison of two jobs."""
    with np.load(io.BytesIO(content), allow_pickle=False) as packed:
        return {name: packed[name] for name in packed.files}

"""The report of a job: figures of every model, sizes and speeds; per-sequence values in a file beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tide_core.contracts.reporting import AttemptBrief
from workers.evaluation.exact_match import Matches, Task, match_figures
from workers.evaluation.held_out import HeldOutSet
from workers.evaluation.tally import Tally
from workers.storage import exists, read_bytes, write_bytes


def build_report(
    brief: AttemptBrief,
    held_out: HeldOutSet,
    tallies: Mapping[str, Tally],
    matches: Mapping[str, Matches],
    tasks: Sequence[Task],
    sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as JSON values: `models` maps each model to its figures."""
    models: dict[str, dict[str, Any]] = {name: dict(tally.figures()) for name, tally in tallies.items()}
    for name, found in matches.items():
        models.setdefault(name, {})["exact_match"] = match_figures(tasks, found)
    spec = brief.spec
    return {
        "object": "report",
        "job_id": brief.job_id,
        "variant": spec.variant.value if spec.variant else None,
        "pipeline": spec.pipeline,
        "seed": spec.seed,
        "held_out": {
            "sequences": len(held_out.samples),
            "timesteps": held_out.noise.count,
            "content_bytes": float(held_out.content_bytes.sum()),
        },
        "models": models,
        "sequences": brief.folder.sequences,
        "sizes": dict(sizes),
        "speeds": training_facts(brief).get("speeds", {}),
    }


def training_facts(brief: AttemptBrief) -> dict[str, Any]:
    """What the train phase wrote into the manifest: steps, seconds, speeds; empty without a manifest."""
    location = brief.folder.manifest
    if not exists(location):
        return {}
    facts: dict[str, Any] = json.loads(read_bytes(location)).get("training", {})
    return facts


def write_report(
    brief: AttemptBrief,
    report: Mapping[str, Any],
    tallies: Mapping[str, Tally],
    matches: Mapping[str, Matches],
) -> None:
    """Write the per-sequence values, then the report."""
    arrays = {f"{name}/{column}": v for name, tally in tallies.items() for column, v in tally.columns.items()}
    arrays |= {f"{name}/exact_match": np.array(m.is_match, dtype=np.float64) for name, m in matches.items()}
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    write_bytes(brief.folder.sequences, packed.getvalue())
    write_bytes(brief.folder.report, (json.dumps(report, indent=2, sort_keys=True) + "\n").encode())


def read_sequences(content: bytes) -> dict[str, np.ndarray]:
    """The arrays that `write_report` wrote, for a paired comparison of two jobs."""
    with np.load(io.BytesIO(content), allow_pickle=False) as packed:
        return {name: packed[name] for name in packed.files}

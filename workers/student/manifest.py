"""The manifest: what is needed to repeat a job or to trust its result."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tide_core.contracts.reporting import AttemptBrief
from workers.storage import exists, read_bytes, write_bytes

PACKAGES = ("tide-distill", "torch", "ray", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


def write_manifest(brief: AttemptBrief, **facts: Any) -> None:
    """Write `jobs/<id>/manifest.json`: the resolved spec, versions and what a phase found out.

    Facts of an earlier phase or attempt stay unless they are given again.
    """
    location = brief.folder.manifest
    known: dict[str, Any] = json.loads(read_bytes(location)) if exists(location) else {}
    content = known | {
        "object": "manifest",
        "job_id": brief.job_id,
        "attempt": brief.attempt,
        "seed": brief.spec.seed,
        "spec": brief.spec.model_dump(mode="json"),
        "prepared": brief.prepared,
        "written_at": datetime.now(UTC).isoformat(),
        "versions": {"python": platform.python_version(), **_versions()},
        **facts,
    }
    write_bytes(location, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""Whether a teacher can fit: bytes of its weights, as they will be served, against the largest node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.orchestrator.compute import ClusterResources
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.teacher import TeacherPool

_BYTES_PER_WEIGHT = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


def weight_bytes(teacher: TeacherSpec, *, is_on_gpu: bool) -> int | None:
    """Bytes that the weights of a teacher in a local folder take once loaded; None when that is unknown.

    Files hold one precision and replicas may serve another: the size on disk is scaled by the two widths.
    """
    folder = Path(teacher.model)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None  # a hub name or a URL: known once it is fetched
    on_disk = sum(file.stat().st_size for file in files)
    served = teacher.dtype if teacher.dtype != "auto" else ("bfloat16" if is_on_gpu else "float32")
    stored_width = _BYTES_PER_WEIGHT.get(_stored_dtype(folder), 0)
    if not stored_width:
        return on_disk
    return on_disk * _BYTES_PER_WEIGHT[served] // stored_width


def problem(pool: TeacherPool, cluster: ClusterResources) -> str | None:
    """Why no node of the cluster can hold the teacher, with both figures; None when one can, or may.

    An empty cluster (nothing started yet) is no reason: it may grow.
    """
    is_on_gpu = pool.gpus_per_replica > 0
    needed = weight_bytes(pool.teacher, is_on_gpu=is_on_gpu)
    if needed is None:
        return None
    if is_on_gpu:
        available = int(cluster.largest_gpu_memory * max(1.0, pool.gpus_per_replica))
        where = f"{pool.gpus_per_replica:g} GPU(s) of the largest kind have"
    else:
        available, where = cluster.largest_node_memory, "the largest node has"
    if not available or needed <= available:
        return None
    return (
        f"The teacher {pool.teacher.model} needs {_gib(needed)} for its weights, but {where} "
        f"{_gib(available)}. Use a smaller teacher, a narrower 'teacher.dtype', or larger nodes."
    )


def _stored_dtype(folder: Path) -> str:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"

"""Whether a teacher can fit: bytes of its weights, as they will be served, against the largest node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.orchestrator.compute import ClusterResources
from tide_core.checkpoints.headers import BYTES_PER_DTYPE, read_config, weight_files
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import find_family
from tide_core.contracts.job import TeacherSpec
from tide_core.contracts.teacher import TeacherPool, bits_per_weight


def weight_bytes(teacher: TeacherSpec, *, is_on_gpu: bool) -> int | None:
    """Bytes that the weights of a teacher in a local folder take once loaded; None when that is unknown.

    Files hold one precision and replicas may serve another: the size on disk is scaled by the two widths.
    With quantisation all weights but embedding and LM head take their few bits.
    """
    folder = Path(teacher.model)
    try:
        files = weight_files(folder)
    except CheckpointError:
        return None  # a hub name or a URL, known once it is fetched; or a folder that the loader will refuse
    config = _config(folder)
    on_disk = sum(file.stat().st_size for file in files)
    served = teacher.dtype if teacher.dtype != "auto" else ("bfloat16" if is_on_gpu else "float32")
    stored_width = BYTES_PER_DTYPE.get(_stored_dtype(config), 0)
    if not stored_width:
        return on_disk if teacher.quantisation == "none" else None
    if teacher.quantisation == "none":
        return on_disk * BYTES_PER_DTYPE[served] // stored_width
    numbers = on_disk // stored_width
    whole = min(numbers, _count_unquantised(config))
    return int(
        whole * BYTES_PER_DTYPE[served] + (numbers - whole) * bits_per_weight(teacher.quantisation) / 8
    )


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
        f"{_gib(available)}. Use a smaller teacher, a narrower 'teacher.dtype', "
        "'teacher.quantisation', or larger nodes."
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_config(folder)
    except CheckpointError:
        return {}  # the loader will refuse it


def _count_unquantised(config: dict[str, Any]) -> int:
    """Numbers in embedding and LM head; 0 where the config names no sizes, which the loader will refuse."""
    family = find_family(config.get("model_type"))
    config = config if family is None else family.standard_fields(config)
    rows, width = config.get("vocab_size"), config.get("hidden_size")
    if not isinstance(rows, int) or not isinstance(width, int):
        return 0
    return rows * width * (1 if config.get("tie_word_embeddings") else 2)


def _stored_dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"

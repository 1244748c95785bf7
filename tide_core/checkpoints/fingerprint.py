"""A name for exactly these weights, computed by this code, in this dtype.

The whole content of the weight files is hashed, not a sample: two checkpoints may differ in one tensor, or in
a few numbers of it, and a fingerprint that missed it would let a student train on another teacher's answers.
It costs one sequential read of files that are read anyway (files are hashed in parallel, about 1
GB/s each).
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tide_core.checkpoints.headers import read_config, weight_files
from tide_core.contracts.job import Quantisation

# Raise it with any change that alters what a model computes from the same weights.
CODE_VERSION = 1
# What config.json says about its origin and not about the computation.
IGNORED_FIELDS = (
    "transformers_version",
    "_name_or_path",
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
)
MAX_THREADS = 8


def fingerprint(folder: str | os.PathLike[str], dtype: str, quantisation: Quantisation = "none") -> str:
    """Hash over the weights' bytes, the configuration, dtype and quantisation, and the version of this code.

    Args:
        folder: a model folder.
        dtype: in which the weights are held when computing, e.g. ``bfloat16``.
        quantisation: how the layers' weights are held.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: the folder is incomplete.
    """
    config = {name: value for name, value in read_config(folder).items() if name not in IGNORED_FIELDS}
    files = weight_files(folder)
    with ThreadPoolExecutor(max_workers=min(len(files), MAX_THREADS)) as pool:
        digests = list(pool.map(_file_digest, files))
    head = {"version": CODE_VERSION, "dtype": dtype, "config": config, "weights": digests}
    if quantisation != "none":  # so that the fingerprints of whole weights stay what they were
        head["quantisation"] = quantisation
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

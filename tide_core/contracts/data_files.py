"""Files of rows: which format a name tells of, and which split a file belongs to.

In: a path or a URL. Out: what its name says. The control plane's first look at a data source and the reading
of its rows both ask here, so they accept the same files.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
"""Formats by the suffix of a file's name, without the suffix of a compression."""
COMPRESSIONS = frozenset({".gz", ".bz2", ".xz", ".zst"})
_GLOB = re.compile(r"[*?\[]")


def read_suffix(name: str) -> str:
    """The suffix that tells the format: ``.jsonl`` of ``train.jsonl.gz``."""
    path = PurePosixPath(name)
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def is_of_split(name: str, split: str) -> bool:
    """``train.jsonl``, and the hub's ``train-00000-of-00002.parquet``, belong to ``train``."""
    stem = PurePosixPath(name).name.split(".")[0]
    return stem == split or re.fullmatch(re.escape(split) + r"-\d+(-of-\d+)?", stem) is not None


def is_glob(path: str) -> bool:
    """Whether a path is a pattern for several files."""
    return _GLOB.search(path) is not None

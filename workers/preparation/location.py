"""Prepared data sets wherever the storage is."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tide_core.data.shards import PreparedDataset
from workers.storage import cache_folder, local_path


def open_prepared(location: str) -> PreparedDataset:
    """Open a prepared data set; a remote one is copied to the local cache once.

    Raises:
        DataError: there is none.
    """
    path = local_path(location)
    return PreparedDataset.open(path if path is not None else _local_copy(location))


def _local_copy(location: str) -> Path:
    import fsspec

    target = cache_folder() / "prepared" / location.rstrip("/").rsplit("/", 1)[-1]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    filesystem, root = fsspec.core.url_to_fs(location)
    draft = Path(tempfile.mkdtemp(prefix=".prepared-", dir=target.parent))
    try:
        for entry in filesystem.find(root):
            filesystem.get_file(entry, str(draft / Path(entry).name))
        try:
            os.replace(draft, target)
        except OSError:
            # Another process of this machine was first; its copy of the same hash is the same.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target

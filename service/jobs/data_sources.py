"""What can be seen of data sources without reading them whole."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from service.jobs.locations import local_path
from tide_core.contracts.data_files import COMPRESSIONS, FORMATS, is_glob, is_of_split, read_suffix
from tide_core.contracts.errors import DataError
from tide_core.contracts.job import DataSource

_OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_LOOK_BYTES = 1 << 16


def check_source(source: DataSource, param: str) -> DataSource:
    """See that a source's local files exist and are not empty; remote ones are left to the preparation.

    Args:
        source: as posted.
        param: path of the source in the spec, for errors.

    Returns:
        The source with an absolute location.

    Raises:
        DataError: ``data_not_found``, ``split_not_found``, ``unknown_format``, ``empty_data``, ``bad_data``.
        InvalidInputError: ``path_not_found``.
    """
    if source.format == "hub":
        return source
    where = f"{param}.location"
    if is_glob(source.location) and "://" not in source.location.removeprefix("file://"):
        return _check_glob(source, where)
    path = local_path(source.location, where)
    if path is None:
        return source
    files = _files_of_split(path, source.split, param) if path.is_dir() else [path]
    _check_files(files, source, where)
    return source.model_copy(update={"location": str(path)})


def _check_glob(source: DataSource, where: str) -> DataSource:
    pattern = Path(source.location.removeprefix("file://")).expanduser().absolute()
    anchor = Path(pattern.anchor)
    files = sorted(path for path in anchor.glob(str(pattern.relative_to(anchor))) if path.is_file())
    if not files:
        raise DataError(f"No file matches {str(pattern)!r}.", code="data_not_found", param=where)
    _check_files(files, source, where)
    return source.model_copy(update={"location": str(pattern)})


def _files_of_split(folder: Path, split: str, param: str) -> list[Path]:
    """``<split>.jsonl`` and ``<split>-00000-of-00002.parquet`` below a folder."""
    files = sorted(path for path in folder.rglob("*") if read_suffix(path.name) in FORMATS and path.is_file())
    chosen = [path for path in files if is_of_split(path.name, split)]
    if chosen:
        return chosen
    if not files:
        raise DataError(
            f"The folder {folder} holds no .jsonl, .json or .parquet file.",
            code="data_not_found",
            param=f"{param}.location",
        )
    names = ", ".join(path.name for path in files[:10])
    raise DataError(
        f"The folder {folder} has no file of the split {split!r} (found: {names}). "
        f"Name a file {split}.jsonl, or set 'split'.",
        code="split_not_found",
        param=f"{param}.split",
    )


def _check_files(files: list[Path], source: DataSource, where: str) -> None:
    for path in files:
        if source.format == "auto" and read_suffix(path.name) not in FORMATS:
            raise DataError(
                f"The format of {path} cannot be recognised from its name. Set 'format' to jsonl, json or "
                "parquet.",
                code="unknown_format",
                param=where,
            )
    starts = [_start_of(path, source, where) for path in files]
    if not any(starts):
        named = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise DataError(f"There is no row in {named}.", code="empty_data", param=where)


def _start_of(path: Path, source: DataSource, where: str) -> bool:
    """Whether a file has something in it; its first JSON line must be an object."""
    kind = FORMATS.get(read_suffix(path.name), "") if source.format == "auto" else source.format
    if path.stat().st_size == 0:
        return False
    if kind == "parquet" or path.suffix in COMPRESSIONS.difference(_OPENERS):
        return True
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as stream:
            text = bytes(stream.read(_LOOK_BYTES)).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.", param=where) from error
    if text[:1] == b"[" and kind == "json":
        return re.fullmatch(rb"\[\s*\]\s*", text) is None
    first, newline, _ = text.partition(b"\n")
    is_whole = bool(newline) or len(text) < _LOOK_BYTES
    if first and is_whole and not _is_object(first):
        raise DataError(f"The first line of {path} is not a JSON object.", param=where)
    return bool(first)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

"""Rows from files (JSON lines, JSON, Parquet; local or any fsspec URL) and Hugging Face data sets.

Rows come in a fixed order, so that a row's place names it: files sorted by path, rows as they stand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import fsspec

from tide_core.checkpoints.hub_names import is_hub_name
from tide_core.contracts.data_files import FORMATS, is_glob, is_of_split, read_suffix
from tide_core.contracts.errors import DataError
from tide_core.contracts.job import DataSource

_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class SourceRow:
    """One row as it was found.

    Attributes:
        index: place in the sources taken one after the other, from 0.
        source_index: which source.
        fields: the columns, or None where the row cannot be read.
        problem: what is wrong with it, if it cannot be read.
    """

    index: int
    source_index: int
    fields: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    url: str
    format: str


@dataclass(frozen=True)
class OpenSource:
    """A source whose files were found (or, with no files, a hub data set)."""

    spec: DataSource
    files: tuple[SourceFile, ...]

    def rows(self) -> Iterator[tuple[dict[str, Any] | None, str]]:
        """The rows in order, up to the source's limit: (columns, "") or (None, what is wrong)."""
        found = (
            (row for file in self.files for row in _read_file(file)) if self.files else _hub_rows(self.spec)
        )
        return islice(found, self.spec.limit)

    def count(self) -> int:
        """Number of rows, counted without parsing them (blank lines count not)."""
        total = sum(map(_count_rows, self.files)) if self.files else len(_load_hub(self.spec))
        return total if self.spec.limit is None else min(total, self.spec.limit)

    def fingerprint(self) -> str:
        """Hex digest of the content; remote files that carry an entity tag are not read for it."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(_file_digest(file.url))
        if not self.files:
            digest.update(str(_load_hub(self.spec)._fingerprint).encode())
        return digest.hexdigest()


def open_source(spec: DataSource) -> OpenSource:
    """Find the files of a source.

    Raises:
        DataError: nothing is there (``data_not_found``), or files of an unknown form (``unknown_format``).
    """
    if spec.format == "hub":
        return OpenSource(spec, ())
    urls = _expand(spec)
    is_file_name = read_suffix(spec.location) in FORMATS
    if not urls and spec.format == "auto" and not is_file_name and is_hub_name(spec.location):
        return OpenSource(spec, ())
    if not urls:
        raise DataError(
            f"there is no file at {spec.location!r}; give a path, a glob, a URL or a hub data set's name",
            code="data_not_found",
            param="data.sources.location",
        )
    return OpenSource(spec, tuple(SourceFile(url, _format_of(url, spec)) for url in urls))


def iterate_rows(sources: Sequence[OpenSource]) -> Iterator[SourceRow]:
    """All rows of all sources, one source after the other, numbered throughout."""
    index = 0
    for source_index, source in enumerate(sources):
        for fields, problem in source.rows():
            yield SourceRow(index, source_index, fields, problem)
            index += 1


def row_digest(fields: object) -> bytes:
    """16 bytes that name a row's content, whatever its place; equal rows have equal digests."""
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _expand(spec: DataSource) -> list[str]:
    """Files at a path, a glob or a URL, sorted; of a folder, the files of the split."""
    filesystem, path = fsspec.core.url_to_fs(spec.location)
    if is_glob(path):
        return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))
    if not filesystem.exists(path):
        return []
    if filesystem.isfile(path):
        return [filesystem.unstrip_protocol(path)]
    names = sorted(found for found in filesystem.find(path) if read_suffix(found) in FORMATS)
    chosen = [name for name in names if is_of_split(name, spec.split)]
    if not chosen and names:
        found = ", ".join(PurePosixPath(name).name for name in names[:10])
        raise DataError(
            f"the folder {spec.location!r} has no file of the split {spec.split!r} (found: {found}); "
            f"name a file {spec.split}.jsonl, or set split",
            code="split_not_found",
            param="data.sources.split",
        )
    return [filesystem.unstrip_protocol(name) for name in chosen]


def _format_of(url: str, spec: DataSource) -> str:
    if spec.format != "auto":
        return spec.format
    if read_suffix(url) in FORMATS:
        return FORMATS[read_suffix(url)]
    raise DataError(
        f"cannot tell the format of {url!r} by its name; set format to jsonl, json or parquet",
        code="unknown_format",
        param="data.sources.format",
    )


def _read_file(file: SourceFile) -> Iterator[tuple[dict[str, Any] | None, str]]:
    if file.format == "parquet":
        return _read_parquet(file.url)
    return _read_json_array(file.url) if _is_json_array(file) else _read_lines(file.url)


def _is_json_array(file: SourceFile) -> bool:
    """A ``.json`` file may be one array or, as often, JSON lines under another name."""
    if file.format != "json":
        return False
    with fsspec.open(file.url, "rb", compression="infer") as stream:
        return bytes(stream.read(4096)).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["


def _read_lines(url: str) -> Iterator[tuple[dict[str, Any] | None, str]]:
    with fsspec.open(url, "rb", compression="infer") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _parse(line, f"{url} line {number}")


def _parse(line: bytes, place: str) -> tuple[dict[str, Any] | None, str]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        return None, f"{place}: {error}"
    return _as_row(value, place)


def _as_row(value: object, place: str) -> tuple[dict[str, Any] | None, str]:
    return (value, "") if isinstance(value, dict) else (None, f"{place}: not a JSON object")


def _read_json_array(url: str) -> Iterator[tuple[dict[str, Any] | None, str]]:
    with fsspec.open(url, "rb", compression="infer") as stream:
        try:
            values = json.loads(stream.read().decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{url} is not valid JSON: {error}", param="data.sources.location") from error
    for number, value in enumerate(values):
        yield _as_row(value, f"{url} entry {number}")


def _read_parquet(url: str) -> Iterator[tuple[dict[str, Any] | None, str]]:
    import pyarrow.parquet

    with fsspec.open(url, "rb") as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{url} is not Parquet: {error}", param="data.sources.location") from error
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield row, ""


def _count_rows(file: SourceFile) -> int:
    if file.format == "parquet":
        import pyarrow.parquet

        with fsspec.open(file.url, "rb") as stream:
            return int(pyarrow.parquet.ParquetFile(stream).metadata.num_rows)
    if _is_json_array(file):
        return sum(1 for _ in _read_json_array(file.url))
    with fsspec.open(file.url, "rb", compression="infer") as stream:
        return sum(1 for line in stream if line.strip())


def _file_digest(url: str) -> bytes:
    filesystem, path = fsspec.core.url_to_fs(url)
    details = filesystem.info(path)
    tag = details.get("ETag") or details.get("etag")
    if tag:
        return f"{url} {tag} {details.get('size')}".encode()
    digest = hashlib.blake2b(digest_size=16)
    with filesystem.open(path, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.digest()


@lru_cache(maxsize=4)
def _load_hub(spec: DataSource) -> Any:
    """A hub data set (or a folder in its layout), by the datasets library."""
    import datasets

    try:
        return datasets.load_dataset(spec.location, spec.name, split=spec.split, revision=spec.revision)
    except Exception as error:  # the library raises many kinds, none of which explains itself to a user
        raise DataError(
            f"cannot load the data set {spec.location!r} (split {spec.split!r}): {error}; "
            "there is no file of that name either",
            code="data_not_found",
            param="data.sources.location",
        ) from error


def _hub_rows(spec: DataSource) -> Iterator[tuple[dict[str, Any] | None, str]]:
    for row in _load_hub(spec):
        yield dict(row), ""

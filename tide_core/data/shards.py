"""Prepared samples on disk: Arrow files, memory-mapped, in a folder named by the hash of all that went in.

A folder is written under another name and renamed when it is whole, so that a part of one is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64

from tide_core.alignment.coverage import CoverageReport
from tide_core.contracts.errors import DataError
from tide_core.contracts.objective import Pipeline
from tide_core.data.samples import PreparedSample

MANIFEST_FILE = "manifest.json"
TRAIN, HELD_OUT = "train", "held_out"
_ARRAYS = (
    "student_ids",
    "labels",
    "teacher_ids",
    "student_chunk_ids",
    "teacher_chunk_ids",
    "teacher_positions",
)


def content_hash(inputs: Mapping[str, Any]) -> str:
    """Hex name of a prepared data set: equal inputs, equal name, on every machine."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_shard(samples: Sequence[PreparedSample], path: Path) -> None:
    """Write samples as one Arrow file of one record batch."""
    columns: dict[str, pa.Array] = {
        "sample_index": pa.array([sample.sample_index for sample in samples], pa.int64()),
        "source_index": pa.array([sample.source_index for sample in samples], pa.int32()),
    }
    for name in _ARRAYS:
        if samples and getattr(samples[0], name) is not None:
            columns[name] = _list_column([getattr(sample, name) for sample in samples])
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _list_column(arrays: Sequence[Int32[np.ndarray, " _"]]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


class Shard:
    """One memory-mapped file; arrays of its samples are read-only views without a copy."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        self.sample_index: Int64[np.ndarray, " sample"] = batch.column("sample_index").to_numpy()
        self.source_index: Int32[np.ndarray, " sample"] = batch.column("source_index").to_numpy()
        self._columns = {
            name: (batch.column(name).offsets.to_numpy(), batch.column(name).values.to_numpy())
            for name in _ARRAYS
            if name in batch.schema.names
        }

    def __getitem__(self, row: int) -> PreparedSample:
        arrays = {
            name: values[offsets[row] : offsets[row + 1]] for name, (offsets, values) in self._columns.items()
        }
        return PreparedSample(int(self.sample_index[row]), int(self.source_index[row]), **arrays)


@dataclass(frozen=True)
class SplitManifest:
    """One split of a prepared data set.

    Attributes:
        samples: how many there are.
        shards: (file name, samples) in order.
        rejections: reason -> rows left out.
        examples: reason -> the place and detail of the first row left out for it.
        coverage: how much of the answers' text can be compared.
        student_tokens, trained_tokens, teacher_tokens: totals.
    """

    samples: int
    shards: tuple[tuple[str, int], ...]
    rejections: dict[str, int]
    examples: dict[str, str]
    coverage: CoverageReport
    student_tokens: int
    trained_tokens: int
    teacher_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        values = dict(vars(self))
        return values | {
            "coverage": self.coverage.to_dict(),
            "shards": [list(shard) for shard in self.shards],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SplitManifest:
        """What ``to_dict`` wrote."""
        shards = tuple((name, count) for name, count in values["shards"])
        coverage = CoverageReport.from_dict(values["coverage"])
        return cls(**dict(values) | {"shards": shards, "coverage": coverage})


@dataclass(frozen=True)
class Manifest:
    """What a prepared data set is made of.

    Attributes:
        content_hash: name of the folder.
        inputs: everything that was hashed.
        pipeline: chunks or positions.
        rows: rows in the sources, over both splits; one more than the largest ``sample_index`` can be.
        shared_vocab: leading ids that mean the same to student and teacher.
        splits: ``train`` and ``held_out``.
    """

    content_hash: str
    inputs: dict[str, Any]
    pipeline: Pipeline
    rows: int
    shared_vocab: int
    splits: dict[str, SplitManifest]

    def to_json(self) -> str:
        """As it stands in ``manifest.json``."""
        splits = {name: split.to_dict() for name, split in self.splits.items()}
        return json.dumps(dict(vars(self)) | {"splits": splits}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """What ``to_json`` wrote."""
        values = json.loads(text)
        splits = {name: SplitManifest.from_dict(split) for name, split in values["splits"].items()}
        return cls(**values | {"splits": splits, "pipeline": Pipeline(values["pipeline"])})


class PreparedSplit(Sequence[PreparedSample]):
    """The samples of one split, in the order of their rows; shards are mapped when first touched."""

    def __init__(self, folder: Path, manifest: SplitManifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._paths = [folder / name for name, _ in manifest.shards]
        self._ends = np.cumsum([count for _, count in manifest.shards], dtype=np.int64)
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return self.manifest.samples

    @overload
    def __getitem__(self, index: int) -> PreparedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreparedSample]: ...
    def __getitem__(self, index: int | slice) -> PreparedSample | list[PreparedSample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._shard(number)[index - start]

    def __iter__(self) -> Iterator[PreparedSample]:
        return (self[place] for place in range(len(self)))

    @cached_property
    def source_index(self) -> Int32[np.ndarray, " sample"]:
        """The source of each sample, in order."""
        parts = [self._shard(number).source_index for number in range(len(self._paths))]
        return np.concatenate([*parts, np.zeros(0, dtype=np.int32)])

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(self._paths[number])
        return self._open[number]


class PreparedDataset:
    """A whole prepared data set: its manifest and its splits."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.train = PreparedSplit(folder, manifest.splits[TRAIN])
        self.held_out = PreparedSplit(folder, manifest.splits[HELD_OUT])

    @classmethod
    def open(cls, folder: str | Path) -> PreparedDataset:
        """Open a prepared data set.

        Raises:
            DataError: there is none, or its manifest cannot be read.
        """
        path = Path(folder) / MANIFEST_FILE
        try:
            return cls(Path(folder), Manifest.from_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DataError(f"there is no prepared data set in {folder}", code="dataset_not_found") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a manifest of this version: {error}") from error


class Staging:
    """A folder under a temporary name, renamed when whole and removed when not."""

    def __init__(self, root: str | Path, name: str) -> None:
        self.final = Path(root) / name
        self.folder = Path(root) / f".{name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial"

    def __enter__(self) -> Staging:
        self.folder.mkdir(parents=True)
        return self

    def publish(self, manifest: Manifest) -> None:
        """Make the folder visible; where another process was faster, its equal folder stays."""
        (self.folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        try:
            os.replace(self.folder, self.final)
        except OSError:
            if not (self.final / MANIFEST_FILE).is_file():
                raise

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

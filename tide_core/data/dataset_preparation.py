"""Prepare whole data sets: split off the held-out rows, make samples in parallel, write them once.

How the work is spread is the caller's: a ``map_batches`` that runs a function over batches, in this process
by default, on a cluster where the caller has one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tide_core.alignment.coverage import CoverageReport
from tide_core.contracts.errors import DataError
from tide_core.contracts.job import DataSource, DataSpec
from tide_core.contracts.labels import IGNORED_LABEL
from tide_core.data.row_preparation import PairRecipe, prepare_rows
from tide_core.data.samples import Rejection, RejectionReason
from tide_core.data.shards import (
    HELD_OUT,
    MANIFEST_FILE,
    TRAIN,
    Manifest,
    PreparedDataset,
    SplitManifest,
    Staging,
    content_hash,
    write_shard,
)
from tide_core.data.sources import OpenSource, SourceRow, iterate_rows, open_source, row_digest
from tide_core.data.tokenization import TextSide

PREPARATION_VERSION = 1
"""Raise it whenever the same inputs give other samples: old prepared folders are then left alone."""
BATCH_ROWS = 512
"""Rows of a batch, and so of a shard."""


@dataclass(frozen=True)
class RowBatch:
    """Rows that become one shard."""

    number: int
    split: str
    rows: list[SourceRow]


@dataclass(frozen=True)
class ShardReport:
    """What one batch became."""

    number: int
    split: str
    file: str
    rows: int
    samples: int
    rejections: dict[str, int]
    examples: dict[str, str]
    coverage: CoverageReport
    student_tokens: int
    trained_tokens: int
    teacher_tokens: int


@dataclass(frozen=True)
class ShardMaker:
    """The function over batches: pure but for the shard it writes, and small to send to a worker."""

    recipe: PairRecipe
    sources: tuple[DataSource, ...]
    folder: str

    def __call__(self, batch: RowBatch) -> ShardReport:
        """Prepare a batch and write its shard; running it again writes the same file."""
        outcome = prepare_rows(batch.rows, self.sources, self.recipe)
        file = f"{batch.split}-{batch.number:06d}.arrow"
        if outcome.samples:
            write_shard(outcome.samples, Path(self.folder) / file)
        examples: dict[str, str] = {}
        for rejection in outcome.rejections:
            examples.setdefault(rejection.reason, _first_of(rejection))
        return ShardReport(
            number=batch.number,
            split=batch.split,
            file=file,
            rows=len(batch.rows),
            samples=len(outcome.samples),
            rejections=dict(Counter(rejection.reason.value for rejection in outcome.rejections)),
            examples=examples,
            coverage=outcome.coverage,
            student_tokens=sum(len(sample.student_ids) for sample in outcome.samples),
            trained_tokens=sum(int((s.labels != IGNORED_LABEL).sum()) for s in outcome.samples),
            teacher_tokens=sum(len(sample.teacher_ids) for sample in outcome.samples),
        )


MapBatches = Callable[[Callable[[RowBatch], ShardReport], Iterable[RowBatch]], Iterable[ShardReport]]
"""Runs the function over the batches, in any order, and yields each report once."""


@dataclass(frozen=True)
class PreparationProgress:
    """How far a preparation is.

    Attributes:
        rows_done: rows that became samples or were rejected.
        rows_total: rows in the sources.
        samples: samples so far.
        seconds: since the start.
    """

    rows_done: int
    rows_total: int
    samples: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before the first rows."""
        if not self.rows_done:
            return None
        return self.seconds * max(0, self.rows_total - self.rows_done) / self.rows_done


def _first_of(rejection: Rejection) -> str:
    """Where a reason was met first, in a line."""
    place = f"row {rejection.row_index}"
    return f"{place}: {rejection.detail}"[:300] if rejection.detail else place


def serial_map(
    function: Callable[[RowBatch], ShardReport], batches: Iterable[RowBatch]
) -> Iterator[ShardReport]:
    """Run in this process, one batch after the other."""
    return map(function, batches)


def preparation_inputs(data: DataSpec, recipe: PairRecipe) -> dict[str, Any]:
    """Everything that decides the samples: contents, tokenizers, templates, lengths, and this code's version.

    Raises:
        DataError: a source is not there.
    """
    return _inputs(data, recipe, _open_all(data))


def preparation_hash(data: DataSpec, recipe: PairRecipe) -> str:
    """Name of the prepared data set that ``prepare`` would write; reads the sources."""
    return content_hash(preparation_inputs(data, recipe))


def prepare(
    data: DataSpec,
    recipe: PairRecipe,
    root: str | Path,
    *,
    map_batches: MapBatches = serial_map,
    on_progress: Callable[[PreparationProgress], None] | None = None,
) -> PreparedDataset:
    """Prepare a data set, or open the one that was prepared from equal inputs.

    Args:
        data: the sources, the held-out part and the template options.
        recipe: the pair (see ``row_preparation.pair_recipe``).
        root: local folder of prepared data sets; workers of ``map_batches`` must see it too.
        map_batches: how the work is spread.
        on_progress: called after every batch.

    Returns:
        The data set in ``root/<hash>``.

    Raises:
        DataError: a source that is not there (``data_not_found``), without rows (``empty_dataset``), or of
            which no training row survives (``no_row_survived``, with the reasons). Nothing is left behind.
    """
    opened = _open_all(data)
    inputs = _inputs(data, recipe, opened)
    name = content_hash(inputs)
    if (Path(root) / name / MANIFEST_FILE).is_file():
        return PreparedDataset.open(Path(root) / name)
    train, held_out = opened
    total = sum(source.count() for source in (*train, *held_out))
    if not total:
        raise DataError("the data sources hold no rows", code="empty_dataset", param="data.sources")
    with Staging(root, name) as staging:
        maker = ShardMaker(recipe, tuple(source.spec for source in (*train, *held_out)), str(staging.folder))
        tally = _Tally(total)
        planner = _Planner(data, train, held_out)
        for report in map_batches(maker, planner.batches()):
            tally.add(report)
            if on_progress is not None:
                on_progress(tally.progress())
        manifest = tally.manifest(name, inputs, recipe, planner)
        _require_samples(manifest)
        staging.publish(manifest)
    return PreparedDataset.open(Path(root) / name)


OpenSources = tuple[list[OpenSource], list[OpenSource]]


def _open_all(data: DataSpec) -> OpenSources:
    """Training sources and held-out sources."""
    return [open_source(s) for s in data.sources], [open_source(s) for s in data.held_out.sources]


def _inputs(data: DataSpec, recipe: PairRecipe, opened: OpenSources) -> dict[str, Any]:
    # Where a file lies and how often its rows are visited does not change what is made of them.
    ignored = {"location", "weight"}
    described = [
        [source.spec.model_dump(exclude=ignored) | {"content": source.fingerprint()} for source in sources]
        for sources in opened
    ]
    return {
        "version": PREPARATION_VERSION,
        "sources": described[0],
        "held_out": {
            "sources": described[1],
            "fraction": data.held_out.fraction,
            "limit": data.held_out.limit,
        },
        "student": [recipe.student_fingerprint, *_special_ids(recipe.student())],
        "teacher": [recipe.teacher_fingerprint, *_special_ids(recipe.teacher())],
        "template": dict(recipe.template_options),
        "pipeline": recipe.pipeline.value,
        "lengths": [recipe.student_length, recipe.teacher_length, recipe.block_size],
        "every_answer": recipe.every_answer,
    }


def _special_ids(side: TextSide) -> list[int | None]:
    """Mask and end-of-sequence ids, which a model's config may decide."""
    tokens = (side.special.mask, side.special.eos)
    return [None if token is None else token.id for token in tokens]


class _Planner:
    """Deals rows to batches, each of one split; counts the held-out rows beyond the limit."""

    def __init__(self, data: DataSpec, train: list[OpenSource], held_out: list[OpenSource]) -> None:
        self._limit = data.held_out.limit
        self._share = 0.0 if held_out else data.held_out.fraction
        self._sources = (*train, *held_out)
        self._first_held_out = len(train)
        self.over_limit = 0
        self.rows = 0

    def batches(self) -> Iterator[RowBatch]:
        waiting: dict[str, list[SourceRow]] = {TRAIN: [], HELD_OUT: []}
        set_aside = number = 0
        for row in iterate_rows(self._sources):
            self.rows += 1
            split = HELD_OUT if self._is_held_out(row) else TRAIN
            if split == HELD_OUT:
                set_aside += 1
                if set_aside > self._limit:
                    self.over_limit += 1
                    continue
            waiting[split].append(row)
            if len(waiting[split]) == BATCH_ROWS:
                yield RowBatch(number, split, waiting[split])
                waiting[split] = []
                number += 1
        for split, rows in waiting.items():
            if rows:
                yield RowBatch(number, split, rows)
                number += 1

    def _is_held_out(self, row: SourceRow) -> bool:
        """By content, so that equal rows are on one side and a row's side never changes."""
        if row.source_index >= self._first_held_out:
            return True
        if not self._share or row.fields is None:
            return False
        return int.from_bytes(row_digest(row.fields)[:8], "big") < self._share * 2**64


@dataclass
class _Tally:
    """Reports as they come in."""

    rows_total: int
    reports: list[ShardReport] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def add(self, report: ShardReport) -> None:
        self.reports.append(report)

    def progress(self) -> PreparationProgress:
        done = sum(report.rows for report in self.reports)
        samples = sum(report.samples for report in self.reports)
        return PreparationProgress(done, self.rows_total, samples, time.monotonic() - self.started)

    def manifest(
        self,
        name: str,
        inputs: Mapping[str, Any],
        recipe: PairRecipe,
        planner: _Planner,
    ) -> Manifest:
        # Whatever order the batches were done in, the manifest is the same.
        self.reports.sort(key=lambda report: report.number)
        splits = {split: self._split(split) for split in (TRAIN, HELD_OUT)}
        if planner.over_limit:
            splits[HELD_OUT].rejections[RejectionReason.HELD_OUT_OVER_LIMIT.value] = planner.over_limit
        return Manifest(
            content_hash=name,
            inputs=dict(inputs),
            pipeline=recipe.pipeline,
            rows=planner.rows,
            shared_vocab=recipe.shared_vocab,
            splits=splits,
        )

    def _split(self, split: str) -> SplitManifest:
        reports = [report for report in self.reports if report.split == split]
        rejections: Counter[str] = Counter()
        examples: dict[str, str] = {}
        coverage = CoverageReport()
        for report in reports:
            rejections.update(report.rejections)
            examples = report.examples | examples
            coverage.add(report.coverage)
        return SplitManifest(
            samples=sum(report.samples for report in reports),
            shards=tuple((report.file, report.samples) for report in reports if report.samples),
            rejections=dict(rejections),
            examples=examples,
            coverage=coverage,
            student_tokens=sum(report.student_tokens for report in reports),
            trained_tokens=sum(report.trained_tokens for report in reports),
            teacher_tokens=sum(report.teacher_tokens for report in reports),
        )


def _require_samples(manifest: Manifest) -> None:
    train = manifest.splits[TRAIN]
    if train.samples:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(train.rejections.items()))
    first = "; ".join(f"{reason}: {example}" for reason, example in sorted(train.examples.items()))
    raise DataError(
        f"none of {manifest.rows} rows can be trained on ({reasons or 'all were held out'}). {first}",
        code="no_row_survived",
        param="data.sources",
    )

"""The prepare phase: rows to prepared shards in storage, once for all jobs with the same inputs.

In: an attempt's brief with its resolved spec. Out: a folder of prepared shards under a content hash, the
student before its first step, and the report `prepared`.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.job_folder import prepared_folder
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.reporting import AttemptBrief, Coverage, DatasetPrepared, Note, Progress
from tide_core.contracts.states import Phase
from tide_core.data.dataset_preparation import (
    BATCH_ROWS,
    PreparationProgress,
    RowBatch,
    ShardReport,
    preparation_hash,
    prepare,
    serial_map,
)
from tide_core.data.row_preparation import PairRecipe, pair_recipe
from tide_core.data.shards import HELD_OUT, MANIFEST_FILE, TRAIN, Manifest, PreparedDataset
from workers.preparation.location import open_prepared
from workers.preparation.student_tokenizer import fetch_student_tokenizer
from workers.reporting.reporter import Reporter
from workers.reporting.trackers import open_reporter
from workers.storage import exists, local_path, materialise_tokenizer, publish_folder

IN_FLIGHT = 16
"""Batches under way per cluster, at least; bounds the memory of a long source."""


def run_preparation(brief: AttemptBrief) -> dict[str, Any]:
    """Prepare the job's data and report it; the result repeats the report."""
    with open_reporter(brief) as reporter:
        report = prepare_for_job(brief, reporter, functools.partial(ray_map, node_labels=brief.node_labels))
        reporter.send(report)
        return report.model_dump(mode="json", exclude={"type"})


def prepare_for_job(brief: AttemptBrief, reporter: Reporter, map_batches: MapFunction) -> DatasetPrepared:
    """Find the prepared data in storage, or make it.

    Raises:
        DataError: no source, no rows, or none that survives (with the counts by reason).
        TokenizerError: a tokenizer that is missing, or lacks a mask or end token.
    """
    spec = brief.spec
    with tempfile.TemporaryDirectory(prefix="tide-prepare-") as scratch:
        reporter.send(Progress(phase=Phase.PREPARE, stage="reading tokenizers", completed=0, unit="rows"))
        recipe = job_recipe(spec, Path(scratch) / "student")
        location = prepared_folder(brief.storage, preparation_hash(spec.data, recipe))
        is_reused = exists(f"{location}/{MANIFEST_FILE}")
        if is_reused:
            dataset = open_prepared(location)
        else:
            dataset = _prepare(spec, recipe, location, reporter, map_batches)
    _tell_rejections(dataset.manifest, reporter)
    return _report(dataset.manifest, location, is_reused)


def job_recipe(spec: ResolvedJobSpec, scratch: Path) -> PairRecipe:
    """The pair of tokenizers and the lengths of a job; a mask token is added in `scratch` where it may be."""
    assert spec.data.teacher_length is not None, "resolve() fills it in"
    return pair_recipe(
        str(fetch_student_tokenizer(spec.student, scratch)),
        str(materialise_tokenizer(spec.teacher.model, spec.teacher.revision)),
        pipeline=Pipeline(spec.pipeline),
        student_length=spec.data.student_length,
        teacher_length=spec.data.teacher_length,
        block_size=spec.student.block_size,
        template=spec.data.template,
    )


def _prepare(
    spec: ResolvedJobSpec, recipe: PairRecipe, location: str, reporter: Reporter, map_batches: MapFunction
) -> PreparedDataset:
    def tell(done: PreparationProgress) -> None:
        reporter.send(
            Progress(
                phase=Phase.PREPARE,
                stage="tokenising",
                completed=done.rows_done,
                total=done.rows_total,
                unit="rows",
                eta_seconds=done.seconds_left,
            )
        )

    folder = local_path(location)
    if folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return prepare(spec.data, recipe, folder.parent, map_batches=map_batches, on_progress=tell)
    with tempfile.TemporaryDirectory(prefix="tide-prepared-") as scratch:
        # Tasks on other nodes could not write to this machine's folder.
        dataset = prepare(spec.data, recipe, scratch, map_batches=serial_map, on_progress=tell)
        # Files go up in the order of their names; a reader looks for the manifest and may see it early, so
        # it goes last.
        manifest = dataset.folder / MANIFEST_FILE
        hidden = Path(scratch) / MANIFEST_FILE
        manifest.rename(hidden)
        publish_folder(dataset.folder, location)
        hidden.rename(manifest)
        publish_folder(dataset.folder, location)
    return open_prepared(location)


def _tell_rejections(manifest: Manifest, reporter: Reporter) -> None:
    """Rows left out are never silent: one note for each reason, with the first example."""
    for name, split in manifest.splits.items():
        for reason, count in sorted(split.rejections.items()):
            example = split.examples.get(reason, "")
            text = f"{count} rows of the split {name} were left out: {reason}." + (
                f" First: {example}" if example else ""
            )
            reporter.send(Note(level="warning", code="data.rejected", message=text))


def _report(manifest: Manifest, location: str, is_reused: bool) -> DatasetPrepared:
    rejected: Counter[str] = Counter()
    for split in manifest.splits.values():
        rejected.update(split.rejections)
    train, held_out = manifest.splits[TRAIN], manifest.splits[HELD_OUT]
    return DatasetPrepared(
        location=location,
        content_hash=manifest.content_hash,
        rows=train.samples,
        held_out_rows=held_out.samples,
        rejected=dict(rejected),
        coverage=Coverage.model_validate(train.coverage.to_dict()),
        reused=is_reused,
    )


MapFunction = Callable[[Callable[[RowBatch], ShardReport], Iterable[RowBatch]], Iterable[ShardReport]]

ClusterMap = Callable[
    [Callable[[RowBatch], ShardReport], Iterator[RowBatch], Mapping[str, str]], Iterator[ShardReport]
]


def ray_map(
    function: Callable[[RowBatch], ShardReport],
    batches: Iterable[RowBatch],
    *,
    node_labels: Mapping[str, str] | None = None,
    map_on: ClusterMap | None = None,
) -> Iterator[ShardReport]:
    """Run over batches on the cluster's CPUs, a bounded number at a time.

    The storage folder must be one that all nodes share. A data set with no more rows than one batch holds is
    done here, whatever its splits: it takes less time than the start of a process, and Ray is not joined.

    Args:
        function: what to do with a batch.
        batches: read as they are needed.
        node_labels: of the nodes that may be used; any node without them.
        map_on: maps over the batches of a larger data set; without it, on Ray.
    """
    upcoming = iter(batches)
    read: list[RowBatch] = []
    for batch in upcoming:
        read.append(batch)
        if sum(len(each.rows) for each in read) > BATCH_ROWS:
            yield from (map_on or _map_on_ray)(function, chain(read, upcoming), node_labels or {})
            return
    yield from map(function, read)


def _map_on_ray(
    function: Callable[[RowBatch], ShardReport], batches: Iterator[RowBatch], node_labels: Mapping[str, str]
) -> Iterator[ShardReport]:
    import ray

    from workers.cluster import connect, own_error, worker_environment

    connect()
    task = ray.remote(
        num_cpus=1,
        max_retries=3,
        label_selector=dict(node_labels) or None,
        # Alignment is short work on large arrays: with malloc's own settings most of it is page faults.
        runtime_env=worker_environment(1),
    )(_apply)
    shared = ray.put(function)
    limit = max(IN_FLIGHT, 2 * (os.cpu_count() or 1))
    running: list[Any] = []
    for batch in batches:
        running.append(task.remote(shared, batch))
        if len(running) < limit:
            continue
        done, running = ray.wait(running)
        yield from _gather(done, own_error)
    while running:
        done, running = ray.wait(running)
        yield from _gather(done, own_error)


def _apply(function: Callable[[RowBatch], ShardReport], batch: RowBatch) -> ShardReport:
    # A task has one core: tokenizers would start a thread for each of the node's in every task.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return function(batch)


def _gather(done: list[Any], own_error: Callable[[BaseException], Any]) -> Iterator[ShardReport]:
    import ray

    for reference in done:
        try:
            yield ray.get(reference)
        except Exception as error:
            raise own_error(error) or error from error

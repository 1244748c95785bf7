"""The order of samples: the same whatever the number of workers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_core.alignment.coverage import CoverageReport
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import JobSpec, resolve
from tide_core.contracts.objective import Pipeline
from tide_core.data.batches import BatchPlan, Visit, micro_batches, training_plan
from tide_core.data.samples import PreparedSample
from tide_core.data.shards import Manifest, PreparedDataset, PreparedSplit, SplitManifest, write_shard
from tide_core.masks.streams import permutation


@pytest.fixture
def split(tmp_path: Path) -> PreparedSplit:
    return make_split(tmp_path, [0] * 10 + [1] * 7)


def make_split(folder: Path, sources: Sequence[int]) -> PreparedSplit:
    samples = [
        PreparedSample(
            sample_index=2 * number,
            source_index=source,
            student_ids=np.full(4, number, dtype=np.int32),
            labels=np.full(4, number, dtype=np.int32),
            teacher_ids=np.full(3, number, dtype=np.int32),
            teacher_positions=np.zeros(4, dtype=np.int32),
        )
        for number, source in enumerate(sources)
    ]
    parts = [samples[:5], samples[5:]]
    shards = []
    for number, part in enumerate(parts):
        if part:
            write_shard(part, folder / f"{number}.arrow")
            shards.append((f"{number}.arrow", len(part)))
    manifest = SplitManifest(len(samples), tuple(shards), {}, {}, CoverageReport(), 0, 0, 0)
    return PreparedSplit(folder, manifest)


def names(visits: Sequence[Visit]) -> list[tuple[int, int]]:
    return [(visit.epoch, visit.sample.sample_index) for visit in visits]


def test_an_epoch_visits_every_sample_once_in_the_seeds_order(split: PreparedSplit) -> None:
    plan = BatchPlan(split, seed=3, global_batch_size=17)
    assert names(plan.global_batch(0)) == [(0, 2 * place) for place in permutation(3, 0, 17).tolist()]
    assert names(plan.global_batch(1)) == [(1, 2 * place) for place in permutation(3, 1, 17).tolist()]
    assert names(plan.global_batch(0)) != names(
        BatchPlan(split, seed=4, global_batch_size=17).global_batch(0)
    )


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_the_global_batch_does_not_depend_on_the_workers(split: PreparedSplit, workers: int) -> None:
    plan = BatchPlan(split, seed=3, global_batch_size=6)
    for step in range(8):
        whole = names(plan.global_batch(step))
        shares = [names(plan.worker_share(step, worker, workers)) for worker in range(workers)]
        assert sorted(visit for share in shares for visit in share) == sorted(whole)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_batches_run_across_epochs_without_a_gap(split: PreparedSplit) -> None:
    plan = BatchPlan(split, seed=0, global_batch_size=5)
    visits = [visit for step in range(17) for visit in names(plan.global_batch(step))]
    assert Counter(epoch for epoch, _ in visits) == dict.fromkeys(range(5), 17)
    assert len(set(visits)) == 5 * 17
    assert plan.visits_per_epoch == 17
    assert [plan.steps(epochs) for epochs in (0.01, 1, 2, 5)] == [1, 4, 7, 17]


def test_weights_repeat_and_thin_out_sources(split: PreparedSplit) -> None:
    plan = BatchPlan(split, seed=1, global_batch_size=24, weights=(2.0, 0.6), rows=100)
    assert plan.visits_per_epoch == 2 * 10 + 4
    epochs = [plan.global_batch(step) for step in range(4)]
    for visits in epochs:
        assert len({visit.epoch for visit in visits}) == 1
        indices = [visit.sample.sample_index for visit in visits]
        assert len(set(indices)) == 24, "a repeated row draws its own masks"
        rows = Counter(index % 100 for index in indices)
        assert [rows[2 * number] for number in range(10)] == [2] * 10
        assert sum(rows[2 * number] for number in range(10, 17)) == 4
    chosen = [
        frozenset(v.sample.sample_index for v in visits if v.sample.source_index == 1) for visits in epochs
    ]
    assert len(set(chosen)) > 1, "another part of the rows each epoch"


def test_a_repeated_sample_is_the_same_but_for_its_index(split: PreparedSplit) -> None:
    plan = BatchPlan(split, seed=1, global_batch_size=34, weights=(2.0, 2.0), rows=100)
    by_row: dict[int, list[PreparedSample]] = {}
    for visit in plan.global_batch(0):
        by_row.setdefault(visit.sample.sample_index % 100, []).append(visit.sample)
    for first, second in by_row.values():
        assert abs(first.sample_index - second.sample_index) == 100
        assert (first.student_ids == second.student_ids).all()


def test_micro_batches_hold_sequences_of_like_length() -> None:
    assert micro_batches([5, 9, 5, 1, 9, 0, 5], 3) == [[1, 4, 0], [2, 6, 3], [5]]
    assert micro_batches([5, 9, 5, 1, 9, 0, 5], 3, 18) == [[1, 4], [0, 2, 6], [3, 5]]
    assert micro_batches([], 3) == []
    assert micro_batches([0, 0, 0], 2, 4) == [[0, 1], [2]]
    with pytest.raises(InvalidInputError, match="at least one"):
        micro_batches([4], 0)
    with pytest.raises(InvalidInputError, match="takes 7 positions"):
        micro_batches([3, 7], 2, 6)


@given(
    lengths=st.lists(st.integers(0, 40), max_size=30),
    size=st.integers(1, 9),
    tokens=st.none() | st.integers(40, 200),
)
def test_micro_batches_stay_within_their_bounds(lengths: list[int], size: int, tokens: int | None) -> None:
    groups = micro_batches(lengths, size, tokens)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    padded = [len(group) * max(lengths[place] for place in group) for group in groups]
    assert all(len(group) <= size for group in groups)
    assert tokens is None or all(positions <= tokens for positions in padded)
    # One more would not have fitted any but the last: there are as few as there can be.
    for group in groups[:-1]:
        one_more = (len(group) + 1) * lengths[group[0]]
        assert len(group) == size or (tokens is not None and one_more > tokens)
    if tokens is None and len(lengths) % size == 0:
        in_order = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        assert sum(padded) <= sum(len(part) * max(part) for part in in_order)


def test_a_job_trains_on_its_own_plan(split: PreparedSplit) -> None:
    manifest = Manifest(
        "name", {}, Pipeline.SHARED_TOKENIZER, 100, 0, dict.fromkeys(("train", "held_out"), split.manifest)
    )
    dataset = PreparedDataset(split.folder, manifest)
    sources = [{"location": "a.jsonl", "weight": 2.0}, {"location": "b.jsonl"}]
    asked = {
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "objective": "tide_shared",
        "data": {"sources": sources},
        "hyperparameters": {"global_batch_size": 27},
        "seed": 5,
    }
    spec = resolve(JobSpec.model_validate(asked), pipeline=Pipeline.SHARED_TOKENIZER)
    plan = training_plan(dataset, spec)
    own = BatchPlan(split, seed=5, global_batch_size=27, weights=(2.0, 1.0), rows=100)
    assert names(plan.global_batch(3)) == names(own.global_batch(3))
    assert plan.visits_per_epoch == 27


def test_plans_that_cannot_be(split: PreparedSplit, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one sequence"):
        BatchPlan(split, seed=0, global_batch_size=0)
    with pytest.raises(InvalidInputError, match="no samples") as caught:
        BatchPlan(make_split(tmp_path, []), seed=0, global_batch_size=1)
    assert caught.value.code == "no_row_survived"
    with pytest.raises(InvalidInputError, match="weights leave no sample"):
        BatchPlan(split, seed=0, global_batch_size=1, weights=(0.01, 0.01))
    with pytest.raises(InvalidInputError, match="no worker 2 of 2"):
        BatchPlan(split, seed=0, global_batch_size=4).worker_share(0, 2, 2)

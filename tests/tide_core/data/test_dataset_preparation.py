"""Whole data sets: written once, whole or not at all, under the hash of what went in."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fixtures_tokenizers import standard_library_texts
from tide_core.contracts.errors import DataError
from tide_core.contracts.job import DataSource, DataSpec, HeldOut, TemplateOptions
from tide_core.contracts.objective import Pipeline
from tide_core.data.dataset_preparation import (
    PreparationProgress,
    RowBatch,
    ShardReport,
    preparation_hash,
    preparation_inputs,
    prepare,
)
from tide_core.data.row_preparation import PairRecipe, pair_recipe
from tide_core.data.shards import Manifest, PreparedDataset, Staging, content_hash


def rows(count: int = 90) -> list[dict[str, Any]]:
    texts = standard_library_texts()
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me about {n}"},
                {"role": "assistant", "content": texts[n % len(texts)][:300]},
            ]
        }
        for n in range(count)
    ]


@pytest.fixture
def recipe(qwen_folder: Path, llada2_folder: Path) -> PairRecipe:
    return make_recipe(qwen_folder, llada2_folder)


def make_recipe(student: Path, teacher: Path, **changes: Any) -> PairRecipe:
    settings: dict[str, Any] = {
        "pipeline": Pipeline.CROSS_TOKENIZER,
        "student_length": 128,
        "teacher_length": 256,
        "block_size": 32,
        "template": TemplateOptions(),
    }
    return pair_recipe(str(student), str(teacher), **(settings | changes))


def spec(path: Path, **held_out: Any) -> DataSpec:
    return DataSpec(sources=(DataSource(location=str(path)),), held_out=HeldOut(**held_out))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tide_core.data.dataset_preparation.BATCH_ROWS", 16)


def files_of(dataset: PreparedDataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset.folder.iterdir()}


def test_samples_come_back_as_they_were_made(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    data = spec(write_lines(rows()), fraction=0.2)
    dataset = prepare(data, recipe, tmp_path / "prepared")
    train, held_out = dataset.train, dataset.held_out
    assert len(train) + len(held_out) == 90
    assert 5 < len(held_out) < 40
    assert len(train.manifest.shards) > 2
    indices = [sample.sample_index for split in (train, held_out) for sample in split]
    assert sorted(indices) == list(range(90))
    assert [sample.sample_index for sample in train] == sorted(sample.sample_index for sample in train)
    assert train[-1].sample_index == train[len(train) - 1].sample_index
    assert [sample.sample_index for sample in train[2:5]] == [train[n].sample_index for n in (2, 3, 4)]
    with pytest.raises(IndexError):
        train[len(train)]
    for sample in train:
        assert sample.student_ids.dtype == sample.labels.dtype == np.int32
        assert not sample.student_ids.flags.writeable, "a view into the mapped file"
        assert len(sample.student_ids) == len(sample.labels) == len(sample.student_chunk_ids)
        assert sample.teacher_positions is None
    assert train.manifest.student_tokens == sum(len(sample.student_ids) for sample in train)
    assert train.manifest.teacher_tokens == sum(len(sample.teacher_ids) for sample in train)
    assert train.manifest.trained_tokens == sum(int((s.labels != -100).sum()) for s in train)
    assert train.source_index.tolist() == [0] * len(train)
    assert dataset.manifest.rows == 90
    assert dataset.manifest.content_hash == dataset.folder.name == preparation_hash(data, recipe)


def test_the_shared_pipeline_stores_positions(
    qwen_folder: Path, wedlm_folder: Path, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = make_recipe(qwen_folder, wedlm_folder, pipeline=Pipeline.SHARED_TOKENIZER)
    dataset = prepare(spec(write_lines(rows(20))), recipe, tmp_path / "prepared")
    assert dataset.manifest.pipeline is Pipeline.SHARED_TOKENIZER
    assert dataset.manifest.shared_vocab == recipe.shared_vocab
    for sample in dataset.train:
        assert sample.teacher_positions is not None
        assert sample.student_chunk_ids is None
        assert sample.chunk_count == 0


def test_a_second_preparation_reads_nothing_again(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    data = spec(write_lines(rows(20)))
    first = prepare(data, recipe, tmp_path / "prepared")
    before = files_of(first)

    def never(*_: object) -> Iterator[ShardReport]:
        pytest.fail("prepared again")

    assert files_of(prepare(data, recipe, tmp_path / "prepared", map_batches=never)) == before


def test_order_and_number_of_workers_change_nothing(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    data = spec(write_lines(rows()), fraction=0.1)

    def backwards(function: Any, batches: Iterable[RowBatch]) -> Iterator[ShardReport]:
        return map(function, reversed(list(batches)))

    def threads(function: Any, batches: Iterable[RowBatch]) -> Iterator[ShardReport]:
        with ThreadPoolExecutor(3) as pool:
            yield from pool.map(function, batches)

    prepared = [prepare(data, recipe, tmp_path / "serial")]
    prepared += [
        prepare(data, recipe, tmp_path / name, map_batches=spread)
        for name, spread in (("backwards", backwards), ("threads", threads))
    ]
    assert files_of(prepared[0]) == files_of(prepared[1]) == files_of(prepared[2])


def test_a_broken_preparation_leaves_nothing_behind(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    def breaks(function: Any, batches: Iterable[RowBatch]) -> Iterator[ShardReport]:
        for number, batch in enumerate(batches):
            if number == 2:
                assert list((tmp_path / "prepared").iterdir()), "it was under way"
                assert not [p for p in (tmp_path / "prepared").iterdir() if not p.name.startswith(".")]
                raise RuntimeError("a worker died")
            yield function(batch)

    with pytest.raises(RuntimeError, match="a worker died"):
        prepare(spec(write_lines(rows())), recipe, tmp_path / "prepared", map_batches=breaks)
    assert list((tmp_path / "prepared").iterdir()) == []


def test_of_two_preparations_at_once_one_stays(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    data = spec(write_lines(rows(20)))

    def overtaken(function: Any, batches: Iterable[RowBatch]) -> Iterator[ShardReport]:
        reports = [function(batch) for batch in batches]
        prepare(data, recipe, tmp_path / "prepared")
        return iter(reports)

    dataset = prepare(data, recipe, tmp_path / "prepared", map_batches=overtaken)
    assert len(dataset.train) > 10
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [dataset.folder.name]


def test_a_folder_that_cannot_be_published_is_an_error(tmp_path: Path, recipe: PairRecipe) -> None:
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / "stray").touch()
    manifest = Manifest("name", {}, Pipeline.CROSS_TOKENIZER, 0, 0, {})
    with Staging(tmp_path, "name") as staging, pytest.raises(OSError, match="not empty"):
        staging.publish(manifest)


def test_progress_ends_with_all_rows(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    seen: list[PreparationProgress] = []
    prepare(spec(write_lines(rows(40))), recipe, tmp_path / "prepared", on_progress=seen.append)
    assert [progress.rows_done for progress in seen] == sorted(progress.rows_done for progress in seen)
    assert seen[-1].rows_done == seen[-1].rows_total == 40
    assert seen[-1].seconds_left == 0
    assert seen[0].seconds_left is not None
    assert seen[0].seconds_left > 0
    assert PreparationProgress(0, 10, 0, 1.0).seconds_left is None


def test_held_out_rows_are_chosen_by_content(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    first = prepare(spec(write_lines(rows(60)), fraction=0.3), recipe, tmp_path / "prepared")
    more = prepare(spec(write_lines(rows(90)[30:] + rows(60)), fraction=0.3), recipe, tmp_path / "prepared")
    texts = {sample.student_ids.tobytes() for sample in first.held_out}
    again = {sample.student_ids.tobytes() for sample in more.held_out}
    assert texts <= again, "a row keeps its side when rows are added"
    assert not again & {sample.student_ids.tobytes() for sample in more.train}, "nor does a copy of it change"


def test_held_out_sources_and_limits(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    path, other = write_lines(rows(30)), write_lines(rows(50)[30:], "validation.jsonl")
    data = spec(path, sources=(DataSource(location=str(other)),), limit=12)
    dataset = prepare(data, recipe, tmp_path / "prepared")
    assert (len(dataset.train), len(dataset.held_out)) == (30, 12)
    assert dataset.manifest.splits["held_out"].rejections == {"held_out_over_limit": 8}
    assert set(dataset.held_out.source_index.tolist()) == {1}
    none = prepare(spec(path, fraction=0), recipe, tmp_path / "prepared")
    assert (len(none.train), len(none.held_out)) == (30, 0)
    assert none.held_out.source_index.shape == (0,)


def test_rejections_are_counted_with_an_example(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    bad: list[dict[str, Any]] = [{"text": ""}, {"other": 1}, {"other": 2}]
    dataset = prepare(spec(write_lines(rows(20) + bad), fraction=0), recipe, tmp_path / "prepared")
    manifest = dataset.manifest.splits["train"]
    assert manifest.rejections == {"empty_response": 1, "missing_field": 2}
    assert manifest.examples["missing_field"].startswith("row 21: no 'text' among ['other']")
    assert manifest.samples == 20
    assert manifest.coverage.contents == 20
    assert 0.9 < manifest.coverage.share <= 1
    reopened = PreparedDataset.open(dataset.folder)
    assert reopened.manifest == dataset.manifest


def test_data_without_rows_or_without_survivors(
    recipe: PairRecipe, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="hold no rows") as caught:
        prepare(spec(write_lines([])), recipe, tmp_path / "prepared")
    assert caught.value.code == "empty_dataset"
    bad = spec(write_lines([{"other": 1}, {"other": 2}, {"text": 3}]), fraction=0)
    with pytest.raises(DataError, match=r"none of 3 rows .*2 missing_field, 1 unsupported") as caught:
        prepare(bad, recipe, tmp_path / "prepared")
    assert caught.value.code == "no_row_survived"
    with pytest.raises(DataError, match="there is no file") as caught:
        prepare(spec(tmp_path / "missing.jsonl"), recipe, tmp_path / "prepared")
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


def test_the_hash_names_everything_that_went_in(
    qwen_folder: Path,
    llada2_folder: Path,
    wedlm_folder: Path,
    write_lines: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = write_lines(rows(5))
    recipe = make_recipe(qwen_folder, llada2_folder)
    base = preparation_hash(spec(path), recipe)
    changed_template = Path(shutil.copytree(qwen_folder, tmp_path / "changed"))
    (changed_template / "chat_template.jinja").write_text("{{ messages[0].content }}")
    recipes = [
        make_recipe(qwen_folder, wedlm_folder),
        make_recipe(llada2_folder, llada2_folder),
        make_recipe(changed_template, llada2_folder),
        make_recipe(qwen_folder, llada2_folder, student_length=160),
        make_recipe(qwen_folder, llada2_folder, teacher_length=257),
        make_recipe(qwen_folder, llada2_folder, block_size=16),
        make_recipe(qwen_folder, llada2_folder, every_answer=True),
        make_recipe(qwen_folder, llada2_folder, pipeline=Pipeline.SHARED_TOKENIZER),
        make_recipe(qwen_folder, llada2_folder, template=TemplateOptions(enable_thinking=True)),
        make_recipe(qwen_folder, llada2_folder, template=TemplateOptions(extra={"tone": "kind"})),
    ]
    hashes = [preparation_hash(spec(path), changed) for changed in recipes]
    source = DataSource(location=str(path))
    specs = [
        spec(write_lines(rows(6), "more.jsonl")),
        spec(path, fraction=0.5),
        spec(path, limit=3),
        spec(path, sources=(source,)),
        DataSpec(sources=(source.model_copy(update={"limit": 2}),)),
        DataSpec(sources=(source.model_copy(update={"rows": "text"}),)),
        DataSpec(sources=(source, source)),
    ]
    hashes += [preparation_hash(changed, recipe) for changed in specs]
    assert len({base, *hashes}) == 1 + len(hashes)
    # Neither where files lie nor how often rows are visited changes a sample.
    moved = Path(shutil.copytree(qwen_folder, tmp_path / "moved"))
    weighted = source.model_copy(update={"weight": 2.0})
    assert preparation_hash(DataSpec(sources=(weighted,)), recipe) == base
    copy = write_lines(rows(5), "copy.jsonl")
    assert preparation_hash(spec(copy), make_recipe(moved, llada2_folder)) == base
    assert json.loads(json.dumps(preparation_inputs(spec(path), recipe)))["version"] == 1
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})


def test_what_is_no_prepared_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data set") as caught:
        PreparedDataset.open(tmp_path)
    assert caught.value.code == "dataset_not_found"
    (tmp_path / "manifest.json").write_text('{"splits": {}}')
    with pytest.raises(DataError, match="not a manifest"):
        PreparedDataset.open(tmp_path)

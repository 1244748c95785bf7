"""Rows from files of every kind, in an order that names them."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tide_core.contracts.errors import DataError
from tide_core.contracts.job import DataSource
from tide_core.data.sources import OpenSource, iterate_rows, open_source, row_digest

ROWS = [{"text": f"row {n}", "n": n, "nested": [{"role": "user", "content": "ä漢"}]} for n in range(5)]


def opened(location: Path | str, **settings: Any) -> OpenSource:
    return open_source(DataSource(location=str(location), **settings))


def fields(source: OpenSource) -> list[dict[str, Any] | None]:
    return [row for row, _ in source.rows()]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_all_kinds(folder: Path) -> dict[str, Path]:
    (folder / "rows.jsonl").write_text(lines(ROWS))
    (folder / "blank.ndjson").write_text("\ufeff" + lines(ROWS).replace("\n", "\n\n"), encoding="utf-8")
    (folder / "array.json").write_text(" \n" + json.dumps(ROWS, indent=1))
    (folder / "lines.json").write_text(lines(ROWS))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode()))
    (folder / "array.json.bz2").write_bytes(bz2.compress(json.dumps(ROWS).encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=2)
    return {path.name: path for path in folder.iterdir()}


KINDS = [
    "rows.jsonl",
    "blank.ndjson",
    "array.json",
    "lines.json",
    "rows.jsonl.gz",
    "array.json.bz2",
    "rows.parquet",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    source = opened(write_all_kinds(tmp_path)[kind])
    assert fields(source) == ROWS
    assert source.count() == 5
    assert len(source.fingerprint()) == 32
    limited = opened(tmp_path / kind, limit=3)
    assert fields(limited) == ROWS[:3]
    assert limited.count() == 3


def test_a_format_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text(lines(ROWS))
    assert fields(opened(tmp_path / "rows.txt", format="jsonl")) == ROWS
    with pytest.raises(DataError, match="set format") as caught:
        opened(tmp_path / "rows.txt")
    assert caught.value.code == "unknown_format"


def test_a_glob_is_sorted_and_rows_are_numbered_throughout(tmp_path: Path) -> None:
    for name, rows in (("b.jsonl", ROWS[2:]), ("a.jsonl", ROWS[:2])):
        (tmp_path / name).write_text(lines(rows))
    first = opened(tmp_path / "*.jsonl")
    assert fields(first) == ROWS
    assert first.count() == 5
    rows = list(iterate_rows([first, opened(tmp_path / "a.jsonl")]))
    assert [row.index for row in rows] == list(range(7))
    assert [row.source_index for row in rows] == [0] * 5 + [1] * 2


def test_a_folder_holds_a_file_a_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "train_extra"):
        pq.write_table(pa.Table.from_pylist([{"text": name}]), tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "validation.jsonl").write_text(lines(ROWS))
    (tmp_path / "README.md").write_text("not data")
    assert [row["text"] for row in fields(opened(tmp_path)) if row] == [
        "train-00000-of-00002",
        "train-00001-of-00002",
    ]
    assert fields(opened(tmp_path, split="validation")) == ROWS
    with pytest.raises(DataError, match=r"no file of the split 'dev' \(found: ") as caught:
        opened(tmp_path, split="dev")
    assert caught.value.code == "split_not_found"


def test_any_url_of_fsspec() -> None:
    files = fsspec.filesystem("memory")
    with files.open("/bucket/rows.jsonl", "w") as stream:
        stream.write(lines(ROWS))
    source = opened("memory://bucket/*.jsonl")
    assert fields(source) == ROWS
    assert source.fingerprint() == opened("memory://bucket/rows.jsonl").fingerprint()
    files.rm("/bucket", recursive=True)


def test_remote_files_with_an_entity_tag_are_not_read_for_their_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = fsspec.filesystem("memory")
    with files.open("/tagged/rows.jsonl", "w") as stream:
        stream.write(lines(ROWS))
    source = opened("memory://tagged/rows.jsonl")
    plain = source.fingerprint()
    details = dict(files.info("/tagged/rows.jsonl"))
    monkeypatch.setattr(type(files), "info", lambda self, path, **_: details | {"ETag": "abc"})
    tagged = source.fingerprint()
    monkeypatch.setattr(type(files), "open", lambda *_, **__: pytest.fail("the file was read"))
    assert source.fingerprint() == tagged != plain


def test_a_hub_layout_goes_through_the_datasets_library(tmp_path: Path) -> None:
    folder = tmp_path / "some-data"
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "data" / "train-00000-of-00001.parquet")
    source = opened(folder, format="hub")
    assert fields(source) == ROWS
    assert source.count() == 5
    assert source.fingerprint() == opened(folder, format="hub").fingerprint()
    assert fields(opened(folder, format="hub", limit=2)) == ROWS[:2]
    with pytest.raises(DataError, match="cannot load") as caught:
        opened(folder, format="hub", split="nothing").count()
    assert caught.value.code == "data_not_found"


def test_a_name_that_is_no_file_is_taken_for_a_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(*names: object, **options: object) -> object:
        asked.append((names, options))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = opened("allenai/tulu-3-sft-mixture", revision="abc")
    with pytest.raises(DataError, match="no network"):
        list(source.rows())
    assert asked == [(("allenai/tulu-3-sft-mixture", None), {"split": "train", "revision": "abc"})]


@pytest.mark.parametrize(
    "location", ["missing.jsonl", "/nowhere/rows.parquet", "a/b/c/d", "none*.jsonl", "./x"]
)
def test_a_path_without_a_file_is_an_error(location: str) -> None:
    with pytest.raises(DataError, match="there is no file at") as caught:
        opened(location)
    assert caught.value.code == "data_not_found"
    assert caught.value.param == "data.sources.location"


def test_lines_that_cannot_be_read_are_rows_with_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": \n[1, 2]\n"\xff"\n{"text": "last"}')
    rows = list(opened(path).rows())
    assert [row for row, _ in rows] == [{"text": "good"}, None, None, None, {"text": "last"}]
    assert "line 2" in rows[1][1]
    assert "not a JSON object" in rows[2][1]
    assert opened(path).count() == 5


def test_files_of_another_kind_are_errors(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="not Parquet"):
        list(opened(tmp_path / "rows.parquet").rows())
    (tmp_path / "rows.json").write_text("[1, 2")
    with pytest.raises(DataError, match="not valid JSON"):
        list(opened(tmp_path / "rows.json").rows())


def test_the_fingerprint_is_of_the_content(write_lines: Callable[..., Path]) -> None:
    first = opened(write_lines(ROWS, "a.jsonl")).fingerprint()
    assert opened(write_lines(ROWS, "elsewhere/b.jsonl")).fingerprint() == first
    assert opened(write_lines(ROWS[:4], "a.jsonl")).fingerprint() != first


def test_equal_rows_have_equal_digests() -> None:
    assert row_digest({"a": 1, "b": "ä"}) == row_digest({"b": "ä", "a": 1})
    assert row_digest({"a": 1}) != row_digest({"a": 2})
    assert len(row_digest({"a": "\ud800"})) == 16

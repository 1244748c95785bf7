"""What the name of a file of rows says."""

import pytest

from tide_core.contracts.data_files import FORMATS, is_glob, is_of_split, read_suffix


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a/train.jsonl", ".jsonl"),
        ("a/train.jsonl.gz", ".jsonl"),
        ("s3://bucket/train.ndjson.zst", ".ndjson"),
        ("train.v2.parquet", ".parquet"),
        ("train.gz", ""),
        ("train", ""),
    ],
)
def test_the_suffix_that_tells_the_format(name: str, suffix: str) -> None:
    assert read_suffix(name) == suffix
    assert bool(suffix) == (read_suffix(name) in FORMATS)


@pytest.mark.parametrize(
    ("name", "is_train"),
    [
        ("a/train.jsonl", True),
        ("train.jsonl.gz", True),
        ("train-00000-of-00002.parquet", True),
        ("train-1.parquet", True),
        ("train-extra.jsonl", False),
        ("a/train/test.jsonl", False),
        ("trainer.jsonl", False),
    ],
)
def test_files_of_a_split(name: str, is_train: bool) -> None:
    assert is_of_split(name, "train") is is_train


def test_a_split_is_no_pattern() -> None:
    assert is_of_split("a.b", "a")
    assert not is_of_split("axb.jsonl", "a.b")


@pytest.mark.parametrize(
    ("path", "expected"), [("a/*.jsonl", True), ("a?", True), ("a[0]", True), ("a/b", False)]
)
def test_patterns(path: str, expected: bool) -> None:
    assert is_glob(path) is expected

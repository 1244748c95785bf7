"""One grammar of hub names for the spec's checks, the data sources and the storage."""

import pytest

from tide_core.checkpoints.hub_names import is_hub_name


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "_me/a_b", "a/b.c", "x" * 96])
def test_names_of_the_hub(name: str) -> None:
    assert is_hub_name(name)


NO_NAMES = [
    "/a",
    "a/",
    "a/b/c",
    "-a",
    "a-",
    ".hidden",
    "a/..",
    "../a",
    "a/-b",
    "a--b",
    "s3://a/b",
    "~/model",
    "./model",
    "rows.jsonl.",
]


@pytest.mark.parametrize("text", [*NO_NAMES, "", "a b", "a\n", "x" * 97, "\u00e9"])
def test_what_no_name_of_the_hub_is(text: str) -> None:
    assert not is_hub_name(text)

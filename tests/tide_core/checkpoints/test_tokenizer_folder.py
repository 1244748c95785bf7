"""What a folder must hold, and what is said when it does not."""

import json
import shutil
from pathlib import Path

import pytest

from tide_core.alignment.coverage import CoverageReport
from tide_core.checkpoints.tokenizer_folder import (
    load_tokenizer,
    read_chat_template,
    read_settings,
    tokenizer_fingerprint,
)
from tide_core.contracts.errors import TokenizerError


@pytest.fixture
def copy(qwen_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen_folder, tmp_path / "copy"))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    for read in (load_tokenizer, tokenizer_fingerprint):
        with pytest.raises(TokenizerError, match=r"no tokenizer\.json") as caught:
            read(tmp_path)
        assert caught.value.code == "tokenizer_not_found"


def test_a_tokenizer_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"hello": 1}')
    with pytest.raises(TokenizerError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path)


def test_truncation_and_padding_of_the_file_are_off(copy: Path) -> None:
    tokenizer = load_tokenizer(copy)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(copy / "tokenizer.json"))
    assert len(load_tokenizer(copy).encode("a rather long text of words").ids) > 8


def test_settings_that_are_not_an_object(tmp_path: Path) -> None:
    assert read_settings(tmp_path, "config.json") == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TokenizerError, match="not valid JSON"):
        read_settings(tmp_path, "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="JSON object"):
        read_settings(tmp_path, "config.json")


def test_the_template_comes_from_its_file_or_the_config(copy: Path) -> None:
    config = copy / "tokenizer_config.json"
    assert "<|im_start|>" in str(read_chat_template(copy))
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "D"}, {"name": "rag"}]}))
    assert read_chat_template(copy) == "D"
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(TokenizerError, match="must be text"):
        read_chat_template(copy)
    (copy / "chat_template.jinja").write_text("file")
    assert read_chat_template(copy) == "file"


def test_the_fingerprint_follows_what_decides_ids(copy: Path) -> None:
    first = tokenizer_fingerprint(copy)
    (copy / "README.md").write_text("a note")
    assert tokenizer_fingerprint(copy) == first
    (copy / "chat_template.jinja").write_text("another template")
    second = tokenizer_fingerprint(copy)
    (copy / "special_tokens_map.json").write_text('{"eos_token": "x"}')
    assert len({first, second, tokenizer_fingerprint(copy)}) == 3


def test_coverage_reports_add_up_and_survive_a_manifest() -> None:
    import numpy as np

    first, second = (
        CoverageReport(content_bytes=10, chunk_bytes=5),
        CoverageReport(contents=2, content_bytes=10),
    )
    first.count_chunks(np.array([1, 1, 40]), np.array([2, 1, 3]))
    second.count_chunks(np.array([1]), np.array([1]))
    first.add(second)
    assert first.share == 0.25
    assert first.student_lengths == {1: 3, 16: 1}
    assert first.teacher_lengths == {1: 2, 2: 1, 3: 1}
    assert first.chunks == 4
    assert CoverageReport.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    assert CoverageReport().share == 1.0

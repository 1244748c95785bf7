"""What is found out before a job is accepted, one mistake at a time."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from service.jobs.preflight import accept
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import JobSpec

LETTERS, OTHER_LETTERS = "abcdefghij", "jihgfedcba"


@pytest.fixture
def database_kind() -> str:
    """These checks touch no database."""
    return "sqlite"


def _rewrite_tokenizer(folder: Path, letters: str, named: dict[str, str]) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in named.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _set_model_type(folder: Path, model_type: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def _no_teacher(root: Path, body: dict[str, Any]) -> None:
    body["teacher"]["model"] = str(root / "nowhere")


def _missing_below_a_folder(root: Path, body: dict[str, Any]) -> None:
    body["student"]["model"] = "tests/no-such-model"


def _no_config(root: Path, body: dict[str, Any]) -> None:
    (root / "teacher" / "config.json").unlink()


def _unknown_teacher(root: Path, body: dict[str, Any]) -> None:
    _set_model_type(root / "teacher", "mamba")


def _contradicting_teacher(root: Path, body: dict[str, Any]) -> None:
    body["teacher"]["architecture"] = "wedlm"


def _unfit_student(root: Path, body: dict[str, Any]) -> None:
    _set_model_type(root / "student", "llada2_moe")


def _pickled(root: Path, body: dict[str, Any]) -> None:
    (root / "student" / "model.safetensors").rename(root / "student" / "pytorch_model.bin")


def _no_weights(root: Path, body: dict[str, Any]) -> None:
    (root / "student" / "model.safetensors").unlink()


def _missing_shard(root: Path, body: dict[str, Any]) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (root / "teacher" / "model.safetensors.index.json").write_text(json.dumps(index))


def _no_tokenizer(root: Path, body: dict[str, Any]) -> None:
    (root / "student" / "tokenizer.json").unlink()


def _no_student_mask(root: Path, body: dict[str, Any]) -> None:
    _rewrite_tokenizer(root / "student", LETTERS, {"eos_token": "<|end|>"})


def _no_student_end(root: Path, body: dict[str, Any]) -> None:
    _rewrite_tokenizer(root / "student", LETTERS, {"mask_token": "<|mask|>"})


def _no_teacher_mask(root: Path, body: dict[str, Any]) -> None:
    _rewrite_tokenizer(root / "teacher", LETTERS, {"eos_token": "<|end|>"})


def _different_vocabularies(root: Path, body: dict[str, Any]) -> None:
    body["pipeline"] = "shared_tokenizer"


def _remote_teacher_without_pipeline(root: Path, body: dict[str, Any]) -> None:
    body["teacher"]["model"] = "inclusionAI/LLaDA2.0-mini"


def _no_data(root: Path, body: dict[str, Any]) -> None:
    body["data"]["sources"][0]["location"] = str(root / "absent.jsonl")


def _empty_data(root: Path, body: dict[str, Any]) -> None:
    (root / "rows.jsonl").write_text(" \n\n")


def _no_json(root: Path, body: dict[str, Any]) -> None:
    (root / "rows.jsonl").write_text("prompt,response\na,b\n")


def _unknown_format(root: Path, body: dict[str, Any]) -> None:
    (root / "rows.jsonl").rename(root / "rows.csv")
    body["data"]["sources"][0]["location"] = str(root / "rows.csv")


def _no_match(root: Path, body: dict[str, Any]) -> None:
    body["data"]["sources"][0]["location"] = str(root / "part-*.jsonl")


def _no_split(root: Path, body: dict[str, Any]) -> None:
    body["data"]["sources"][0] = {"location": str(root), "split": "test"}


def _no_held_out(root: Path, body: dict[str, Any]) -> None:
    body["data"]["held_out"] = {"sources": [{"location": str(root / "absent.jsonl")}]}


def _no_task(root: Path, body: dict[str, Any]) -> None:
    body["evaluation"] = {"exact_match": {"source": {"location": str(root / "absent.jsonl")}}}


def _tidal_with_reverse(root: Path, body: dict[str, Any]) -> None:
    body["objective"] = [{"type": "reverse_calm"}, {"type": "tidal_calm"}]


def _term_of_the_other_pipeline(root: Path, body: dict[str, Any]) -> None:
    body["objective"] = [{"type": "forward_kl"}]


MISTAKES: list[tuple[Callable[[Path, dict[str, Any]], None], str, str]] = [
    (_no_teacher, "path_not_found", "teacher.model"),
    (_missing_below_a_folder, "path_not_found", "student.model"),
    (_no_config, "not_a_model_folder", "teacher.model"),
    (_unknown_teacher, "unknown_architecture", "teacher.model"),
    (_contradicting_teacher, "architecture_mismatch", "teacher.architecture"),
    (_unfit_student, "unknown_architecture", "student.model"),
    (_pickled, "pickle_weights", "student.model"),
    (_no_weights, "checkpoint_incomplete", "student.model"),
    (_missing_shard, "checkpoint_incomplete", "teacher.model"),
    (_no_tokenizer, "tokenizer_not_found", "student.model"),
    (_no_student_mask, "tokenizer_without_mask_token", "student.model"),
    (_no_student_end, "tokenizer_without_eos_token", "student.model"),
    (_no_teacher_mask, "tokenizer_without_mask_token", "teacher.model"),
    (_different_vocabularies, "vocabularies_differ", "pipeline"),
    (_remote_teacher_without_pipeline, "pipeline_unknown", "pipeline"),
    (_no_data, "path_not_found", "data.sources.0.location"),
    (_empty_data, "empty_data", "data.sources.0.location"),
    (_no_json, "bad_data", "data.sources.0.location"),
    (_unknown_format, "unknown_format", "data.sources.0.location"),
    (_no_match, "data_not_found", "data.sources.0.location"),
    (_no_split, "split_not_found", "data.sources.0.split"),
    (_no_held_out, "path_not_found", "data.held_out.sources.0.location"),
    (_no_task, "path_not_found", "evaluation.exact_match.source.location"),
    (_tidal_with_reverse, "tidal_with_reverse", "objective"),
    (_term_of_the_other_pipeline, "objective_pipeline_mismatch", "objective.0.type"),
]


@pytest.mark.parametrize(
    ("mistake", "code", "param"), MISTAKES, ids=[entry[0].__name__.strip("_") for entry in MISTAKES]
)
def test_each_mistake_is_named(
    tmp_path: Path,
    job_body: dict[str, Any],
    mistake: Callable[[Path, dict[str, Any]], None],
    code: str,
    param: str,
) -> None:
    accept(JobSpec.model_validate(job_body))  # without the mistake, all is well
    time.sleep(0.002)  # a tokenizer written anew has another time stamp
    mistake(tmp_path, job_body)
    with pytest.raises(InvalidInputError) as caught:
        accept(JobSpec.model_validate(job_body))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert len(caught.value.message) > 20


def test_a_missing_mask_token_may_be_added(tmp_path: Path, job_body: dict[str, Any]) -> None:
    _no_student_mask(tmp_path, job_body)
    job_body["student"]["add_mask_token"] = True
    assert accept(JobSpec.model_validate(job_body)).student.add_mask_token


def test_the_pipeline_is_found_from_the_tokenizers(tmp_path: Path, job_body: dict[str, Any]) -> None:
    assert accept(JobSpec.model_validate(job_body)).pipeline == "cross_tokenizer"
    # The same letters under the same ids; more letters and other special tokens do no harm.
    named = {"eos_token": "<eot>", "mask_token": "[MASK]"}
    _rewrite_tokenizer(tmp_path / "teacher", LETTERS + "klm", named)
    _set_model_type(tmp_path / "teacher", "wedlm")
    resolved = accept(JobSpec.model_validate(job_body))
    assert resolved.pipeline == "shared_tokenizer"
    assert resolved.teacher.attention == "block_staircase"
    assert [term.type for term in resolved.objective] == ["cross_entropy", "reverse_kl"]
    _rewrite_tokenizer(tmp_path / "teacher", LETTERS[:-1] + "k", named)
    assert accept(JobSpec.model_validate(job_body)).pipeline == "cross_tokenizer"


def test_relative_paths_become_absolute(
    tmp_path: Path, job_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job_body["teacher"]["model"] = "teacher"
    job_body["student"]["model"] = "./student"
    job_body["data"]["sources"] = [{"location": "rows.jsonl"}, {"location": "ro*.jsonl"}]
    resolved = accept(JobSpec.model_validate(job_body))
    assert resolved.teacher.model == str(tmp_path / "teacher")
    assert resolved.student.model == str(tmp_path / "student")
    assert [source.location for source in resolved.data.sources] == [
        str(tmp_path / "rows.jsonl"),
        str(tmp_path / "ro*.jsonl"),
    ]


def test_what_lies_elsewhere_is_left_to_the_preparation(job_body: dict[str, Any]) -> None:
    job_body["teacher"]["model"] = "inclusionAI/LLaDA2.0-mini"
    job_body["student"]["model"] = "s3://bucket/student"
    job_body["data"]["sources"] = [
        {"location": "allenai/tulu-3-sft-mixture"},
        {"location": "https://example.org/rows.jsonl"},
        {"location": "rows-of-the-hub", "format": "hub"},
    ]
    job_body["pipeline"] = "cross_tokenizer"
    resolved = accept(JobSpec.model_validate(job_body))
    assert resolved.teacher.model == "inclusionAI/LLaDA2.0-mini"
    assert resolved.teacher.architecture == "auto"
    assert resolved.student.model == "s3://bucket/student"


def test_a_fresh_student_needs_a_known_architecture(tmp_path: Path, job_body: dict[str, Any]) -> None:
    tokenizer = str(tmp_path / "student")
    job_body["student"] = {"config": {"model_type": "qwen3"}, "tokenizer": tokenizer, "block_size": 4}
    assert accept(JobSpec.model_validate(job_body)).student.tokenizer == tokenizer
    job_body["student"]["config"]["mask_token_id"] = 1
    with pytest.raises(InvalidInputError, match="mask_token_id 1") as caught:
        accept(JobSpec.model_validate(job_body))
    assert (caught.value.code, caught.value.param) == ("special_token_contradiction", "student.tokenizer")
    job_body["student"]["config"]["model_type"] = "gpt2"
    with pytest.raises(InvalidInputError) as caught:
        accept(JobSpec.model_validate(job_body))
    assert (caught.value.code, caught.value.param) == ("unknown_architecture", "student.config.model_type")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz", "train-00000-of-00001.jsonl"])
def test_other_forms_of_data_are_accepted(tmp_path: Path, job_body: dict[str, Any], name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    row = '{"prompt": "a", "response": "b"}'
    content = f"[{row}]" if name == "rows.json" else row
    packed = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    (folder / name).write_bytes(packed)
    location = folder if name.startswith("train") else folder / name
    job_body["data"]["sources"] = [{"location": str(location)}]
    accept(JobSpec.model_validate(job_body))

"""A job that the control plane accepts, and the model folders that its preflight looks at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def write_tokenizer(folder: Path, words: str, *, mask: bool = True, eos: bool = True) -> None:
    """A byte-level tokenizer whose vocabulary is the letters of ``words``, in their order."""
    vocabulary = {letter: number for number, letter in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named: dict[str, str] = {}
    if eos:
        tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
        named["eos_token"] = "<|end|>"
    if mask:
        tokenizer.add_special_tokens([AddedToken("<|mask|>", special=True)])
        named["mask_token"] = "<|mask|>"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def write_model(folder: Path, model_type: str, words: str, *, mask: bool = True, eos: bool = True) -> Path:
    """What preflight looks at of a model: config, weights' file, tokenizer."""
    write_tokenizer(folder, words, mask=mask, eos=eos)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


STUDENT_WORDS, OTHER_WORDS = "abcdefghij", "jihgfedcba"


@pytest.fixture
def job_body(tmp_path: Path) -> dict[str, Any]:
    """A job that is accepted: a student and a teacher with different tokenizers, and some data."""
    student = write_model(tmp_path / "student", "a2d-qwen3", STUDENT_WORDS)
    teacher = write_model(tmp_path / "teacher", "llada2_moe", OTHER_WORDS)
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    return {
        "name": "a job",
        "teacher": {"model": str(teacher)},
        "student": {"model": str(student), "block_size": 4},
        "objective": "tide_cross",
        "data": {"sources": [{"location": str(data)}], "student_length": 16},
        "metadata": {"purpose": "test"},
    }

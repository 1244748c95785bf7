"""A student's folder for the engines that serve SDAR, and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from tide_core.checkpoints.headers import read_config
from tide_core.contracts.errors import CheckpointError, InvalidInputError, TokenizerError
from tide_core.models.conversion import convert
from tide_core.models.dense import DenseConfig
from tide_core.models.sdar_layout import ALGORITHM_FILE, MASK_TOKEN_ID, QWEN3_TOKENS, check_student
from tide_core.models.student import BlockDiffusionStudent

Make = Callable[..., DenseConfig]


@pytest.fixture
def student_folder(dense_config: Make, tmp_path: Path) -> Path:
    """A small student on a tokenizer with Qwen3's special tokens at their own ids."""
    folder = tmp_path / "student"
    config = dense_config(
        vocab_size=MASK_TOKEN_ID + 7, hidden_size=8, num_attention_heads=1, num_key_value_heads=1,
        mask_token_id=MASK_TOKEN_ID, block_size=32, rope_theta=1_000_000.0, eos_token_id=151645,
    )  # fmt: skip
    BlockDiffusionStudent.from_config(config, seed=5).save_pretrained(folder)
    # As large as the genuine one: the library renumbers added tokens that leave gaps.
    named = {number: text for text, number in QWEN3_TOKENS.items()} | {MASK_TOKEN_ID: "<|mask|>"}
    first = min(named)
    added = {named.get(number, f"<|extra_{number}|>"): number for number in range(first, MASK_TOKEN_ID + 1)}
    vocabulary = {"[UNK]": 0} | {f"w{number}": number for number in range(1, first)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "decoder": None,
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in added.items()],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<|mask|>"}))
    (folder / "README.md").write_text("# Trained with care\n")
    return folder


def test_a_student_goes_there_and_back_unchanged(student_folder: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    convert(student_folder, there, layout="sdar")
    fields = json.loads((there / "config.json").read_text())
    assert (fields["model_type"], fields["architectures"]) == ("sdar", ["SDARForCausalLM"])
    # Where sglang looks for it.
    assert fields["rope_theta"] == 1_000_000.0
    assert (fields["mask_token_id"], fields["block_size"]) == (151669, 32)
    assert yaml.safe_load((there / ALGORITHM_FILE).read_text())["block_size"] == 32
    card = (there / "README.md").read_text()
    assert card.startswith("# Trained with care")
    assert "--dllm-algorithm-config FOLDER/dllm_algorithm.yaml" in card
    assert "--dllm-block-length 32" in card
    old, new = (load_file(folder / "model.safetensors") for folder in (student_folder, there))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)
    convert(there, back)
    student = BlockDiffusionStudent.from_pretrained(student_folder)
    assert BlockDiffusionStudent.from_pretrained(back).config == student.config
    assert read_config(back)["model_type"] == "a2d-qwen3"


def test_the_engines_classes_read_what_transformers_reads(student_folder: Path, tmp_path: Path) -> None:
    convert(student_folder, tmp_path / "there", layout="sdar")
    config = transformers.Qwen3Config.from_pretrained(tmp_path / "there")
    model = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "there", config=config)
    student = BlockDiffusionStudent.from_pretrained(student_folder)
    ids, mask = torch.randint(0, 97, (1, 6)), torch.ones(1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=torch.arange(6)[None]).logits
        torch.testing.assert_close(logits, student.lm_head(student(ids)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "param"),
    [
        ({"mask_token_id": 151670}, TokenizerError, "mask_token"),
        ({"block_size": None}, InvalidInputError, "block_size"),
        ({"model_type": "a2d-qwen2", "qk_norm": False, "attention_bias": True}, CheckpointError, "layout"),
    ],
)
def test_what_the_engines_cannot_serve_is_refused(
    student_folder: Path, changes: dict[str, Any], error: type[Exception], param: str
) -> None:
    config = DenseConfig.from_json(read_config(student_folder))
    check_student(config, student_folder)
    with pytest.raises(error) as caught:
        check_student(replace(config, **changes), student_folder)
    assert getattr(caught.value, "param", None) == param


def test_another_tokenizer_is_refused(student_folder: Path, qwen_folder: Path) -> None:
    with pytest.raises(TokenizerError, match="expect Qwen3's tokenizer"):
        check_student(DenseConfig.from_json(read_config(student_folder)), qwen_folder)

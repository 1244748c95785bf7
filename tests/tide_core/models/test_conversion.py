"""Causal checkpoint to student; the mask token's identity."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tide_core.checkpoints.mask_addition import append_mask_token
from tide_core.checkpoints.special_tokens import SpecialToken, find_mask_token, require_mask_token
from tide_core.checkpoints.tokenizer_folder import copy_tokenizer
from tide_core.contracts.errors import CheckpointError, ConflictError, TideError, TokenizerError
from tide_core.models.conversion import convert, initialise
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.export import ModelCard
from tide_core.models.student import BlockDiffusionStudent

Make = Callable[..., DenseConfig]


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    payload = json.loads(path.read_text(encoding="utf-8"))
    change(payload)
    path.write_text(json.dumps(payload), encoding="utf-8")


def without_mask(folder: Path, target: Path) -> Path:
    """A copy of a tokenizer folder whose mask token is gone."""
    shutil.copytree(folder, target)

    def drop(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"] = [
            t for t in tokenizer["added_tokens"] if "mask" not in t["content"].lower()
        ]
        tokenizer["model"]["vocab"] = {
            k: v for k, v in tokenizer["model"]["vocab"].items() if "mask" not in k.lower()
        }

    edit(target / "tokenizer.json", drop)
    edit(target / "tokenizer_config.json", lambda settings: settings.pop("mask_token"))
    return target


def causal(folder: Path, config: DenseConfig) -> DenseDecoder:
    model = DenseDecoder.from_config(config, seed=9)
    model.save_pretrained(folder)
    return model


def size(folder: Path) -> int:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_weights_are_unchanged_and_the_mask_is_confirmed(
    dense_config: Make, qwen_folder: Path, tmp_path: Path, family: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(qwen_folder, source)
    vocab = size(qwen_folder)
    model = causal(source, dense_config(family, vocab_size=vocab, mask_token_id=None))
    student = convert(source, tmp_path / "student", block_size=16)
    loaded = BlockDiffusionStudent.from_pretrained(tmp_path / "student")
    for key, tensor in model.checkpoint_tensors().items():
        assert torch.equal(tensor, loaded.checkpoint_tensors()[key])
    expected = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).token_to_id("<|mask|>")
    assert student.mask_token_id == loaded.mask_token_id == expected
    assert loaded.config.block_size == 16
    assert loaded.config.model_type == f"a2d-{family}"
    assert AutoTokenizer.from_pretrained(tmp_path / "student").mask_token_id == expected
    for name in ("README.md", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if name != "chat_template.jinja" or (qwen_folder / name).is_file():
            assert (tmp_path / "student" / name).is_file()
    # A student converts to itself.
    convert(tmp_path / "student", tmp_path / "again")
    assert BlockDiffusionStudent.from_pretrained(tmp_path / "again").config == loaded.config


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_added_mask_token_gets_the_mean_row(
    dense_config: Make, qwen_folder: Path, tmp_path: Path, is_tied: bool
) -> None:
    source = without_mask(qwen_folder, tmp_path / "source")
    vocab = size(source)
    model = causal(
        source, dense_config("qwen3", vocab_size=vocab, mask_token_id=None, tie_word_embeddings=is_tied)
    )
    with pytest.raises(TokenizerError, match="add_mask_token") as caught:
        convert(source, tmp_path / "student")
    assert caught.value.code == "tokenizer_without_mask_token"
    assert not (tmp_path / "student").exists()
    assert list(tmp_path.iterdir()) == [source]
    student = convert(source, tmp_path / "student", add_mask_token=True)
    added = student.mask_token_id
    assert added >= vocab
    assert student.vocab_size == added + 1
    torch.testing.assert_close(student.embedding.weight[added], model.embedding.weight.mean(0))
    torch.testing.assert_close(student.lm_head.weight[added], model.lm_head.weight.mean(0))
    assert torch.equal(student.embedding.weight[:vocab], model.embedding.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.mask_token_id == added
    assert tokenizer("a <|mask|> b")["input_ids"].count(added) == 1


def test_a_spare_row_is_used_as_it_is(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> None:
    source = without_mask(qwen_folder, tmp_path / "source")
    model = causal(source, dense_config("qwen3", vocab_size=size(source) + 64, mask_token_id=None))
    student = convert(source, tmp_path / "student", add_mask_token=True)
    assert student.vocab_size == model.vocab_size
    assert torch.equal(student.embedding.weight, model.embedding.weight)


def test_a_target_in_use_is_left_alone(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "precious").write_text("x")
    with pytest.raises(ConflictError, match="exists already"):
        initialise(dense_config(vocab_size=700).to_json(), qwen_folder, tmp_path / "student", seed=0)
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["precious"]


def test_a_fresh_student_from_a_config(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> None:
    fields = dense_config("qwen3", vocab_size=size(qwen_folder)).to_json()
    del fields["mask_token_id"]
    one = initialise(fields, qwen_folder, tmp_path / "one", seed=3)
    two = initialise(fields, qwen_folder, tmp_path / "two", seed=3)
    assert torch.equal(one.embedding.weight, two.embedding.weight)
    assert one.mask_token_id == require_mask_token(qwen_folder).id
    loaded = BlockDiffusionStudent.from_pretrained(tmp_path / "one")
    assert torch.equal(loaded.embedding.weight, one.embedding.weight)
    with pytest.raises(CheckpointError, match="gpt2"):
        initialise(fields | {"model_type": "gpt2"}, qwen_folder, tmp_path / "three", seed=0)
    with pytest.raises(CheckpointError, match="outside the vocabulary"):
        initialise(fields | {"vocab_size": 50}, qwen_folder, tmp_path / "three", seed=0)


def test_what_cannot_become_a_student(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "wedlm"
    shutil.copytree(qwen_folder, source)
    causal(source, dense_config("wedlm", vocab_size=size(qwen_folder), mask_token_id=None))
    with pytest.raises(CheckpointError, match="cannot become a student"):
        convert(source, tmp_path / "student")
    with pytest.raises(CheckpointError, match="is a teacher"):
        BlockDiffusionStudent.from_causal(source)
    with pytest.raises(CheckpointError, match="cannot shrink"):
        BlockDiffusionStudent.from_config(dense_config()).with_vocabulary(9)


def test_the_mask_is_found_by_name_or_by_spelling(
    llada2_folder: Path, qwen_folder: Path, tmp_path: Path
) -> None:
    for folder in (llada2_folder, qwen_folder):
        token = require_mask_token(folder)
        assert Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token.text) == token.id
    unnamed = tmp_path / "unnamed"
    shutil.copytree(llada2_folder, unnamed)
    edit(unnamed / "tokenizer_config.json", lambda settings: settings.pop("mask_token", None))
    assert find_mask_token(unnamed) == find_mask_token(llada2_folder)
    assert find_mask_token(tmp_path) is None


def test_contradictions_about_the_mask_are_refused(qwen_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(qwen_folder, folder)
    (folder / "config.json").write_text('{"mask_token_id": 1}')
    with pytest.raises(TokenizerError, match="mask_token_id 1"):
        find_mask_token(folder)
    (folder / "config.json").unlink()
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(mask_token={"content": "<none>"}))
    with pytest.raises(TokenizerError, match="no id"):
        find_mask_token(folder)
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("mask_token"))
    with pytest.raises(TokenizerError, match="already has"):
        append_mask_token(folder)
    append_mask_token(folder, "[MASK]")
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("mask_token"))
    with pytest.raises(TokenizerError, match="several"):
        find_mask_token(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TideError, match="JSON"):
        find_mask_token(folder)


@pytest.mark.parametrize("text", ["<MASK>", "|<MASK>|", "<[MASK]>", "<hide>"])
def test_no_second_mask_is_added_beside_an_existing_one(
    dense_config: Make, qwen_folder: Path, tmp_path: Path, text: str
) -> None:
    source = without_mask(qwen_folder, tmp_path / "source")
    token = append_mask_token(source, text)
    edit(source / "tokenizer_config.json", lambda settings: settings.pop("mask_token"))
    named = token.id if text == "<hide>" else None  # by its spelling nothing tells that it is the mask
    causal(source, dense_config("qwen3", vocab_size=size(source), mask_token_id=named))
    student = convert(source, tmp_path / "student", add_mask_token=True)
    assert student.mask_token_id == token.id
    assert find_mask_token(tmp_path / "student") == token
    assert (tmp_path / "student" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_an_id_of_the_config_gets_the_text(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> None:
    source = without_mask(qwen_folder, tmp_path / "source")
    spare = size(source)
    causal(source, dense_config("qwen3", vocab_size=spare + 8, mask_token_id=spare))
    student = convert(source, tmp_path / "student", add_mask_token=True)
    assert find_mask_token(tmp_path / "student") == SpecialToken("<|mask|>", spare)
    assert (student.mask_token_id, student.vocab_size) == (spare, spare + 8)
    edit(source / "config.json", lambda config: config.update(mask_token_id=spare + 3))
    with pytest.raises(TokenizerError, match="next id") as caught:
        convert(source, tmp_path / "other", add_mask_token=True)
    assert caught.value.param == "mask_token_id"
    config = dense_config("qwen3", vocab_size=size(qwen_folder), mask_token_id=1).to_json()
    with pytest.raises(TokenizerError, match="mask_token_id 1"):
        initialise(config, qwen_folder, tmp_path / "fresh", seed=0)


def test_adding_a_mask_keeps_the_decoder_table_in_step(qwen_folder: Path, tmp_path: Path) -> None:
    folder = without_mask(qwen_folder, tmp_path / "folder")
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(added_tokens_decoder={}))
    token = append_mask_token(folder)
    table = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert table[str(token.id)]["content"] == token.text


def test_cards_tell_origin_training_and_results(
    dense_config: Make, qwen_folder: Path, tmp_path: Path
) -> None:
    student = BlockDiffusionStudent.from_config(dense_config())
    card = ModelCard("A student", "Distilled.", "base", {"seed": "1"}, {"accuracy": "0.5"})
    student.save_pretrained(tmp_path, tokenizer_folder=qwen_folder, card=card)
    text = (tmp_path / "README.md").read_text()
    for part in ("base_model: base", "# A student", "| seed | 1 |", "| accuracy | 0.5 |", "Qwen3ForCausalLM"):
        assert part in text
    assert (tmp_path / "tokenizer.json").read_bytes() == (qwen_folder / "tokenizer.json").read_bytes()
    assert copy_tokenizer(tmp_path, tmp_path) == []
    with pytest.raises(TokenizerError, match="fast tokenizers"):
        copy_tokenizer(tmp_path / "nowhere", tmp_path)

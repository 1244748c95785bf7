"""Special tokens are found in a folder and confirmed, never assumed."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tide_core.checkpoints.special_tokens import (
    SpecialToken,
    find_mask_token,
    find_special_tokens,
    require_eos_token,
    require_mask_token,
)
from tide_core.contracts.errors import TokenizerError


def folder_with(folder: Path, tokens: list[str], **files: dict[str, Any]) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer.model = models.BPE(vocab=alphabet, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_names_in_the_tokenizer_config(qwen_folder: Path, llada2_folder: Path) -> None:
    found = find_special_tokens(qwen_folder)
    assert (found.mask, found.eos, found.pad) == (
        SpecialToken("<|mask|>", 603),
        SpecialToken("<|im_end|>", 602),
        SpecialToken("<|endoftext|>", 600),
    )
    assert found.stop_ids == (602,)
    assert require_mask_token(llada2_folder).text == "<|mask|>"


def test_an_entry_may_be_an_object_and_another_file(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        ["<eos>", "<hide>"],
        tokenizer_config={"mask_token": {"content": "<hide>", "lstrip": False}},
        special_tokens_map={"eos_token": "<eos>"},
    )
    found = find_special_tokens(folder)
    assert found.mask == SpecialToken("<hide>", 257)
    assert found.eos == SpecialToken("<eos>", 256)
    assert found.pad is None


def test_ids_in_the_model_config(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        ["<end>", "<stop>", "<hide>"],
        config={"eos_token_id": [256, 257, 99999], "mask_token_id": 258},
    )
    found = find_special_tokens(folder)
    assert found.mask == SpecialToken("<hide>", 258)
    assert found.eos == SpecialToken("<end>", 256)
    assert found.stop_ids == (256, 257)


@pytest.mark.parametrize(
    "text",
    ["<|mask|>", "<|MASK|>", "[MASK]", "<mask>", "<MASK>", "<|mdm_mask|>", "|<MASK>|", "<[MASK]>"],
)
def test_a_token_written_like_a_mask_is_one(tmp_path: Path, text: str) -> None:
    assert require_mask_token(folder_with(tmp_path, ["<eos>", text])) == SpecialToken(text, 257)


def test_of_two_masks_none_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="name one as mask_token"):
        find_special_tokens(folder_with(tmp_path, ["<mask>", "<|MASK|>"]))
    folder = folder_with(tmp_path, ["<mask>", "<|MASK|>"], tokenizer_config={"mask_token": "<mask>"})
    assert require_mask_token(folder).text == "<mask>"


def test_without_a_mask_the_error_says_how_to_add_one(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["<eos>"])
    assert find_special_tokens(folder).mask is None
    with pytest.raises(TokenizerError, match="tide convert --add-mask-token") as caught:
        require_mask_token(folder)
    assert caught.value.code == "tokenizer_without_mask_token"


def test_without_an_end_the_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="eos_token") as caught:
        require_eos_token(folder_with(tmp_path, ["<mask>"]))
    assert caught.value.code == "tokenizer_without_eos_token"


def test_a_word_is_no_special_token(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [], tokenizer_config={"mask_token": "<|mask|>"})
    with pytest.raises(TokenizerError, match="is not one token") as caught:
        find_special_tokens(folder)
    assert caught.value.code == "special_token_contradiction"
    assert caught.value.param == "mask_token"


def test_a_vocabulary_entry_that_no_text_encodes_to_is_no_special_token(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [], tokenizer_config={"mask_token": "<|mask|>"})
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["vocab"]["<|mask|>"] = 256
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(TokenizerError, match="its own id: 256"):
        find_special_tokens(folder)


def test_an_id_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="mask_token_id 5000"):
        find_special_tokens(folder_with(tmp_path, [], config={"mask_token_id": 5000}))


def test_the_names_come_first_then_the_id_then_the_spelling(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["<hide>", "[MASK]", "<other>"])
    assert find_mask_token(folder) == SpecialToken("[MASK]", 257)
    (folder / "config.json").write_text('{"mask_token_id": 258}')
    assert find_mask_token(folder) == SpecialToken("<other>", 258)
    (folder / "special_tokens_map.json").write_text('{"mask_token": "<hide>"}')
    (folder / "tokenizer_config.json").write_text('{"mask_token": null}')
    with pytest.raises(TokenizerError, match="correct one of them") as caught:
        find_mask_token(folder)
    assert caught.value.code == "special_token_contradiction"
    (folder / "config.json").write_text('{"mask_token_id": 256}')
    assert find_mask_token(folder) == require_mask_token(folder) == SpecialToken("<hide>", 256)


def test_an_id_without_a_text_is_told_from_none(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, ["<eos>"], config={"mask_token_id": 257})
    assert find_mask_token(folder) == SpecialToken("", 257)
    with pytest.raises(TokenizerError, match="mask_token_id 257"):
        require_mask_token(folder)


def test_a_folder_without_a_tokenizer_has_no_mask(tmp_path: Path) -> None:
    assert find_mask_token(tmp_path) is None
    with pytest.raises(TokenizerError) as caught:
        require_mask_token(tmp_path)
    assert caught.value.code == "tokenizer_not_found"

"""To the layout of the dLLM tools and back, through classes that load and save as theirs do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tide_core.checkpoints.special_tokens import require_mask_token
from tide_core.contracts.errors import TokenizerError
from tide_core.models.conversion import convert, initialise
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.student import BlockDiffusionStudent

Make = Callable[..., DenseConfig]
FAMILIES = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}


def tool_classes(family: str) -> tuple[Any, Any]:
    """Config and model with the tools' names: the causal family's own under another ``model_type``."""
    name = FAMILIES[family]
    config = type(
        f"A2D{name}Config", (getattr(transformers, f"{name}Config"),), {"model_type": f"a2d-{family}"}
    )
    model = type(
        f"A2D{name}LMHeadModel", (getattr(transformers, f"{name}ForCausalLM"),), {"config_class": config}
    )
    return config, model


def tools_tokenizer(folder: Path) -> Any:
    """As the tools' ``get_tokenizer`` makes it: an end token is there, and the mask is ``<|mask|>``."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token is not None or tokenizer.pad_token is not None
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    return tokenizer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}


def edit(file: Path, **changes: Any) -> None:
    payload = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in payload.items() if value is not None}))


@pytest.fixture
def trained(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A student's folder with weights that no other has."""

    def make(family: str = "qwen3", **changes: Any) -> Path:
        size = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).get_vocab_size()
        fields = dense_config(family, vocab_size=size, mask_token_id=None, **changes).to_json()
        initialise(fields | {"block_size": 16}, qwen_folder, tmp_path / "student", seed=5)
        (tmp_path / "student" / "README.md").write_text("# Trained with care\n")
        return tmp_path / "student"

    return make


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_goes_there_and_back_unchanged(
    trained: Callable[..., Path], tmp_path: Path, family: str, is_tied: bool
) -> None:
    source = trained(family, tie_word_embeddings=is_tied)
    there, saved, back = (tmp_path / name for name in ("there", "saved", "back"))
    convert(source, there, layout="dllm")
    config_class, model_class = tool_classes(family)
    model = model_class.from_pretrained(there, config=config_class.from_pretrained(there))
    tokenizer = tools_tokenizer(there)
    student = BlockDiffusionStudent.from_pretrained(source)
    assert tokenizer.mask_token_id == student.mask_token_id == len(tokenizer) - 1 < student.vocab_size
    assert json.loads((there / "config.json").read_text())["architectures"] == [model_class.__name__]
    ids, mask = torch.randint(0, 97, (2, 12)), torch.ones(2, 1, 12, 12, dtype=torch.bool)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=torch.arange(12).expand(2, -1)).logits
        torch.testing.assert_close(logits, student.lm_head(student(ids)), atol=2e-5, rtol=1e-4)
    # The tools train on and save; here they only save.
    model.save_pretrained(saved, max_shard_size="60KB")
    tokenizer.save_pretrained(saved)
    convert(saved, back)
    assert BlockDiffusionStudent.from_pretrained(back).config == student.config
    for folder in (there, saved, back):
        found = weights(folder)
        assert found.keys() == weights(source).keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in weights(source).items())
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert (there / "README.md").read_text() == "# Trained with care\n"


def test_a_model_that_the_tools_made_themselves_comes_in(
    dense_config: Make, qwen_folder: Path, tmp_path: Path
) -> None:
    """Their converter writes no ``mask_token_id`` and a tokenizer that knows no mask yet."""
    config_class, model_class = tool_classes("qwen3")
    sizes = dense_config("qwen3").to_json()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    folder = tmp_path / "tools"
    vocab = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).get_vocab_size() + 8
    model = model_class(
        config_class(**{name: sizes[name] for name in names}, num_key_value_heads=2, vocab_size=vocab)
    )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(qwen_folder / name, folder / name)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|mask|>"]
    tokenizer["model"]["vocab"].pop("<|mask|>", None)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit(folder / "tokenizer_config.json", mask_token=None)
    with pytest.raises(TokenizerError, match="add_mask_token"):
        convert(folder, tmp_path / "student")
    student = convert(folder, tmp_path / "student", add_mask_token=True, block_size=8)
    assert student.mask_token_id == tools_tokenizer(folder).mask_token_id
    assert student.config.block_size == 8
    assert all(torch.equal(weights(tmp_path / "student")[k], t) for k, t in weights(folder).items())


def test_a_causal_model_can_go_there_at_once(dense_config: Make, qwen_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "causal"
    shutil.copytree(qwen_folder, source)
    size = Tokenizer.from_file(str(qwen_folder / "tokenizer.json")).get_vocab_size()
    DenseDecoder.from_config(dense_config("qwen2", vocab_size=size, mask_token_id=None)).save_pretrained(
        source
    )
    convert(source, tmp_path / "there", layout="dllm")
    assert json.loads((tmp_path / "there" / "config.json").read_text())["model_type"] == "a2d-qwen2"
    assert tools_tokenizer(tmp_path / "there").mask_token_id == require_mask_token(source).id


def test_another_spelling_of_the_mask_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    source = trained()
    text = (source / "tokenizer.json").read_text()
    (source / "tokenizer.json").write_text(text.replace("<|mask|>", "[MASK]"))
    edit(source / "tokenizer_config.json", mask_token="[MASK]")
    with pytest.raises(TokenizerError, match=r"trained with '\[MASK\]'") as caught:
        convert(source, tmp_path / "there", layout="dllm")
    assert caught.value.code == "mask_token_mismatch"
    assert not (tmp_path / "there").exists()
    convert(source, tmp_path / "ours")


def test_mask_and_end_token_are_named(trained: Callable[..., Path], tmp_path: Path) -> None:
    source = trained()
    edit(source / "tokenizer_config.json", mask_token=None, eos_token=None, pad_token=None)
    edit(source / "config.json", eos_token_id=None)
    with pytest.raises(TokenizerError, match="eos_token") as caught:
        convert(source, tmp_path / "there", layout="dllm")
    assert caught.value.param == "eos_token"
    edit(source / "config.json", eos_token_id=[7, 3])
    convert(source, tmp_path / "there", layout="dllm")
    named = json.loads((tmp_path / "there" / "tokenizer_config.json").read_text())
    assert named["eos_token"] == Tokenizer.from_file(str(source / "tokenizer.json")).id_to_token(7)
    assert named["mask_token"] == "<|mask|>"

"""Headers, loading, saving: whole files pass, anything else is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tide_core.checkpoints.fingerprint import fingerprint
from tide_core.checkpoints.headers import INDEX_NAME, SINGLE_NAME, read_headers, weight_bytes
from tide_core.contracts.errors import CheckpointError
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.loading import lm_head_weight, parse_dtype, save_sharded
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.adapter import TeacherModel, architecture_of, load_teacher
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModel

Make = Callable[..., DenseConfig]


@pytest.fixture
def folder(dense_config: Make, tmp_path: Path) -> Path:
    DenseDecoder.from_config(dense_config("qwen3", tie_word_embeddings=False)).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / SINGLE_NAME)
    change(tensors)
    save_file(tensors, folder / SINGLE_NAME)


def test_every_misfit_key_is_listed_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(3)
        tensors["lm_head.weight"] = torch.zeros(96, 32)

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        DenseDecoder.from_pretrained(folder)
    for part in (
        "missing (2)",
        "model.norm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "not of this model (1)",
        "model.layers.0.self_attn.q_proj.bias",
        "lm_head.weight is [96, 32], the configuration asks for [97, 32]",
    ):
        assert part in caught.value.message


def test_a_wrong_shape_alone_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(1)}))
    with pytest.raises(
        CheckpointError, match=r"of another shape \(1\): model\.norm\.weight is \[1\]"
    ) as caught:
        DenseDecoder.from_pretrained(folder)
    assert caught.value.param == "model.norm.weight"


def test_what_other_tools_leave_in_a_file_is_no_error(dense_config: Make, tmp_path: Path) -> None:
    model = DenseDecoder.from_config(dense_config("llama"))
    model.save_pretrained(tmp_path)
    extra = {
        "lm_head.weight": model.embedding.weight.detach().clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    rewrite(tmp_path, lambda tensors: tensors.update(extra))
    loaded = DenseDecoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.embedding.weight)


def test_a_tied_head_with_values_of_its_own_is_refused(dense_config: Make, tmp_path: Path) -> None:
    model = DenseDecoder.from_config(dense_config("llama"))
    model.save_pretrained(tmp_path)
    other = model.embedding.weight.detach().clone()
    other[3, 4] += 1
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": other}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds other values") as caught:
        DenseDecoder.from_pretrained(tmp_path)
    assert caught.value.param == "tie_word_embeddings"


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "wedlm", "a2d-qwen3"])
def test_a_vocabulary_of_another_size_is_named(dense_config: Make, tmp_path: Path, model_type: str) -> None:
    DenseDecoder.from_config(dense_config(model_type)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 98}))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \[97, 32\].*vocab_size 98") as caught:
        DenseDecoder.from_pretrained(tmp_path)
    assert caught.value.param == "model.embed_tokens.weight"


def test_shards_hold_what_the_index_says(folder: Path) -> None:
    model = DenseDecoder.from_pretrained(folder)
    target = folder.parent / "sharded"
    files = save_sharded(model.checkpoint_tensors(), target, max_shard_bytes=10_000)
    assert len(files) > 2
    assert all(file.stat().st_size < 14_000 for file in files)
    index = json.loads((target / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == weight_bytes(target) == weight_bytes(folder)
    for key, name in index["weight_map"].items():
        assert read_headers(target)[key].file.name == name
        assert torch.equal(load_file(target / name)[key], model.checkpoint_tensors()[key])


def test_dtype_is_converted_while_loading(folder: Path) -> None:
    half = DenseDecoder.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert weight_bytes(folder, "bfloat16") * 2 == weight_bytes(folder) == weight_bytes(folder, "float32")
    half.save_pretrained(folder.parent / "half")
    assert DenseDecoder.from_pretrained(folder.parent / "half").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="dtype"):
        weight_bytes(folder, "int3")
    with pytest.raises(CheckpointError, match="dtype"):
        parse_dtype("int3")
    assert parse_dtype("bfloat16") == torch.bfloat16


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_head_alone_can_be_read(dense_config: Make, tmp_path: Path, is_tied: bool) -> None:
    model = DenseDecoder.from_config(dense_config(tie_word_embeddings=is_tied))
    model.save_pretrained(tmp_path, max_shard_bytes=10_000)
    assert torch.equal(lm_head_weight(tmp_path), model.lm_head.weight)
    assert lm_head_weight(tmp_path, torch.float16).dtype == torch.float16


def test_a_head_that_is_not_there_is_no_embedding_by_chance(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        lm_head_weight(folder)


def test_broken_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        load_teacher(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_teacher(tmp_path / "empty")
    whole = (folder / SINGLE_NAME).read_bytes()
    (folder / SINGLE_NAME).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="cut off"):
        DenseDecoder.from_pretrained(folder)
    for junk in (b"", b"\xff" * 64, whole[:40]):
        (folder / SINGLE_NAME).write_bytes(junk)
        with pytest.raises(CheckpointError, match="safetensors"):
            DenseDecoder.from_pretrained(folder)
    (folder / SINGLE_NAME).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="safetensors only"):
        DenseDecoder.from_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        DenseDecoder.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        DenseDecoder.from_pretrained(folder)


def test_a_lying_index_is_found_out(folder: Path) -> None:
    def index(weight_map: object) -> None:
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))

    index({"model.norm.weight": "gone.safetensors"})
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        read_headers(folder)
    index({"model.absent.weight": SINGLE_NAME})
    with pytest.raises(CheckpointError, match=r"model\.absent\.weight"):
        read_headers(folder)
    index({"model.norm.weight": "../model/" + SINGLE_NAME})
    with pytest.raises(CheckpointError, match="outside"):
        read_headers(folder)
    index([])
    with pytest.raises(CheckpointError, match="weight_map"):
        read_headers(folder)
    (folder / "twin.safetensors").write_bytes((folder / SINGLE_NAME).read_bytes())
    index({"model.norm.weight": SINGLE_NAME, "lm_head.weight": "twin.safetensors"})
    with pytest.raises(CheckpointError, match="stored in both"):
        read_headers(folder)


def test_quantised_weights_are_refused(folder: Path) -> None:
    key = "model.embed_tokens.weight"
    rewrite(folder, lambda tensors: tensors.update({key: tensors[key].to(torch.int8)}))
    with pytest.raises(CheckpointError, match="quantised"):
        DenseDecoder.from_pretrained(folder)
    rewrite(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match="No embedding"):
        DenseDecoder.from_pretrained(folder)


def test_the_fingerprint_sees_one_changed_number(folder: Path) -> None:
    before = fingerprint(folder, "float32")
    assert before == fingerprint(folder, "float32")
    assert before != fingerprint(folder, "bfloat16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}))
    assert fingerprint(folder, "float32") == before
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert fingerprint(folder, "float32") != before
    (folder / "config.json").write_text(json.dumps(config))

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6

    rewrite(folder, nudge)
    assert fingerprint(folder, "float32") != before


def test_teachers_load_by_what_the_folder_says(
    dense_config: Make, moe_config: Callable[..., LLaDA2MoeConfig], tmp_path: Path
) -> None:
    models = {
        "llada2_moe": LLaDA2MoeModel.from_config(moe_config()),
        "a2d-qwen3": BlockDiffusionStudent.from_config(dense_config()),
        "qwen2": DenseDecoder.from_config(dense_config("qwen2")),
        "wedlm": DenseDecoder.from_config(dense_config("wedlm")),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        teacher = load_teacher(tmp_path / name)
        assert isinstance(teacher, TeacherModel)
        assert architecture_of(tmp_path / name) == name
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert not teacher.training
        assert (teacher.mask_token_id, teacher.hidden_size) == (5, model.hidden_size)
        ids = torch.arange(8).view(1, 8)
        assert torch.equal(teacher.hidden_states(ids), model(ids))
    with pytest.raises(CheckpointError, match="'wedlm'") as caught:
        load_teacher(tmp_path / "qwen2", architecture="wedlm")
    assert caught.value.code == "architecture_mismatch"
    config = json.loads((tmp_path / "qwen2" / "config.json").read_text())
    (tmp_path / "qwen2" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="gpt2") as caught:
        load_teacher(tmp_path / "qwen2")
    assert caught.value.code == "unknown_architecture"

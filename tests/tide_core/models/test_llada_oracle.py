"""LLaDA against a slow float64 transcription of its definition, in its own names of fields and weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from tests.support.slow_decoder import (
    Vector,
    add,
    attend,
    feed_forward,
    linear,
    read_weights,
    rms_norm,
    rotate,
    shake,
    split_heads,
)
from tide_core.checkpoints.headers import read_config
from tide_core.contracts.errors import CheckpointError
from tide_core.models.loading import lm_head_weight
from tide_core.models.teachers.adapter import load_teacher
from tide_core.models.teachers.llada import LLaDAConfig, LLaDAModel

# The fields of the published 8B, with small sizes.
CONFIG: dict[str, Any] = {
    "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0, "attention_layer_norm": False, "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False, "block_group_size": 1, "block_type": "llama", "d_model": 24,
    "embedding_dropout": 0.0, "embedding_size": 64, "eos_token_id": 3, "flash_attention": False,
    "include_bias": False, "include_qkv_bias": False, "init_cutoff_factor": None, "init_device": "meta",
    "init_fn": "mitchell", "init_std": 0.3, "input_emb_norm": False, "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "mask_token_id": 5, "max_sequence_length": 4096, "mlp_hidden_size": 28,
    "mlp_ratio": 4, "model_type": "llada", "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 2,
    "n_layers": 2, "pad_token_id": 3, "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-05,
    "rope": True, "rope_full_precision": True, "rope_theta": 500000.0, "scale_logits": False,
    "torch_dtype": "float32", "transformers_version": "4.46.3", "use_cache": False, "vocab_size": 61,
    "weight_tying": False,
}  # fmt: skip
IDS = [7, 8, 9, 5, 11, 5, 13, 5, 5, 16]


def teacher(**changes: Any) -> LLaDAModel:
    model = shake(LLaDAModel.from_config(LLaDAConfig.from_json(CONFIG | changes), seed=4))
    assert isinstance(model, LLaDAModel)
    return model


def transcription(model: LLaDAModel) -> list[Vector]:
    """Full attention, no shift; ``ff_proj`` is the gate and ``ff_out`` leads back."""
    weights = read_weights(model)
    xs = [weights["model.transformer.wte.weight"][token].tolist() for token in IDS]
    for layer in range(2):
        prefix = f"model.transformer.blocks.{layer}."
        normed = [rms_norm(weights[f"{prefix}attn_norm.weight"], x, 1e-5) for x in xs]
        q, k, v = (
            [split_heads(linear(weights, f"{prefix}{name}_proj", x), 6) for x in normed] for name in "qkv"
        )
        q, k = (
            [[rotate(head, place, 500_000.0) for head in heads] for place, heads in enumerate(side)]
            for side in (q, k)
        )
        mixed = attend(q, k, v, [[True] * len(IDS)] * len(IDS))
        xs = [add(x, linear(weights, f"{prefix}attn_out", m)) for x, m in zip(xs, mixed, strict=True)]
        for index, x in enumerate(xs):
            h = rms_norm(weights[f"{prefix}ff_norm.weight"], x, 1e-5)
            xs[index] = add(
                x, feed_forward(weights, f"{prefix}ff_proj", f"{prefix}up_proj", f"{prefix}ff_out", h)
            )
    return [rms_norm(weights["model.transformer.ln_f.weight"], x, 1e-5) for x in xs]


@pytest.mark.parametrize("changes", [{}, {"include_qkv_bias": True}, {"n_kv_heads": 4}])
def test_states_equal_the_transcription(changes: dict[str, Any]) -> None:
    model = teacher(**changes)
    expected = torch.tensor(transcription(model), dtype=torch.float64)
    # float32 enters through the rotary frequencies alone.
    torch.testing.assert_close(model.double()(torch.tensor([IDS]))[0], expected, atol=1e-5, rtol=1e-5)


def test_the_value_is_what_it_was() -> None:
    model = teacher().double()
    with torch.no_grad():
        logits = model.lm_head(model(torch.tensor([IDS])))
    assert float(logits.abs().mean()) == pytest.approx(1.1724500569387586, rel=1e-6)


def test_the_genuine_names_are_those_of_the_published_files() -> None:
    keys = set(teacher().checkpoint_tensors())
    block = "model.transformer.blocks.1."
    own = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out", "attn_norm", "ff_norm")
    assert {key for key in keys if key.startswith(block)} == {f"{block}{name}.weight" for name in own}
    others = {key for key in keys if ".blocks." not in key}
    assert others == {f"model.transformer.{name}.weight" for name in ("wte", "ln_f", "ff_out")}
    assert "model.transformer.ff_out.weight" not in teacher(weight_tying=True).checkpoint_tensors()


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_genuine_layout_round_trips(is_tied: bool, tmp_path: Path) -> None:
    model = teacher(weight_tying=is_tied)
    model.save_pretrained(tmp_path)
    saved = read_config(tmp_path)
    named = (
        "d_model",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "mlp_hidden_size",
        "embedding_size",
        "mask_token_id",
    )
    assert {name: saved[name] for name in named} == {name: CONFIG[name] for name in named}
    assert not {"hidden_size", "num_hidden_layers", "head_dim"} & set(saved)
    loaded = load_teacher(tmp_path)
    assert isinstance(loaded, LLaDAModel)
    assert loaded.config == model.config
    assert torch.equal(loaded(torch.tensor([IDS])), model(torch.tensor([IDS])))
    assert torch.equal(lm_head_weight(tmp_path), model.lm_head.weight)


def test_the_published_fields_are_all_known() -> None:
    with capture_logs() as logs:
        config = LLaDAConfig.from_json(CONFIG)
    assert logs == []
    assert config.vocab_size == 64
    assert config.max_position_embeddings == 4096
    assert LLaDAConfig.from_json(CONFIG | {"embedding_size": None}).vocab_size == 61
    assert LLaDAConfig.from_json(CONFIG | {"n_kv_heads": None}).num_key_value_heads == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_type", "sequential"),
        ("activation_type", "swiglu"),
        ("alibi", True),
        ("rope", False),
        ("attention_layer_norm", True),
        ("include_bias", True),
        ("layer_norm_type", "low_precision"),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("multi_query_attention", True),
        ("block_group_size", 2),
    ],
)
def test_what_is_not_computed_is_refused_by_its_field(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        LLaDAConfig.from_json(CONFIG | {name: value})
    assert caught.value.param == name


def test_a_missing_width_is_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        LLaDAConfig.from_json(CONFIG | {"mlp_hidden_size": None})
    assert caught.value.param == "intermediate_size"

"""LLaDA-MoE against a slow float64 transcription of its definition."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from tests.support.slow_decoder import (
    Vector,
    Weights,
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
from tide_core.contracts.errors import CheckpointError
from tide_core.models.teachers.adapter import load_teacher
from tide_core.models.teachers.llada_moe import LLaDAMoeConfig, LLaDAMoeModel

# The fields of the published class, with small sizes: a dense layer and two sparse ones.
CONFIG: dict[str, Any] = {
    "architectures": ["LLaDAMoEModelLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None,
    "dense_intermediate_size": 28, "eos_token_id": 3, "expert_intermediate_size": 10, "hidden_act": "silu",
    "hidden_size": 24, "initializer_range": 0.3, "mask_token_id": 5, "max_position_embeddings": 8192,
    "model_type": "llada", "moe_layer_freq": [0, 1, 1], "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax", "norm_topk_prob": None, "num_attention_heads": 4,
    "num_experts": 8, "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_key_value_heads": 4,
    "output_router_logits": False, "pad_token_id": 1, "partial_rotary_factor": 1, "qk_layernorm": True,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 50000, "routed_scaling_factor": 1,
    "router_aux_loss_coef": 0.01, "router_num_group": None, "router_topk_group": None,
    "shared_expert_intermediate_size": None, "tie_word_embeddings": False, "vocab_size": 61,
}  # fmt: skip
IDS = [7, 8, 9, 5, 11, 5, 13, 5, 5, 16]


def teacher(**changes: Any) -> LLaDAMoeModel:
    model = shake(LLaDAMoeModel.from_config(LLaDAMoeConfig.from_json(CONFIG | changes), seed=4))
    assert isinstance(model, LLaDAMoeModel)
    return model


def mlp(weights: Weights, prefix: str, x: Vector) -> Vector:
    return feed_forward(weights, f"{prefix}gate_proj", f"{prefix}up_proj", f"{prefix}down_proj", x)


def experts(weights: Weights, prefix: str, x: Vector) -> Vector:
    """Softmax over all experts; the chosen ones keep their shares, which do not sum to one."""
    powers = [math.exp(value) for value in linear(weights, f"{prefix}gate", x)]
    shares = [power / math.fsum(powers) for power in powers]
    update = [0.0] * len(x)
    for expert in sorted(range(len(shares)), key=lambda number: -shares[number])[:3]:
        part = mlp(weights, f"{prefix}experts.{expert}.", x)
        update = add(update, [shares[expert] * value for value in part])
    return update


def transcription(model: LLaDAMoeModel) -> list[Vector]:
    weights = read_weights(model)
    xs = [weights["model.embed_tokens.weight"][token].tolist() for token in IDS]
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        attention = f"{prefix}self_attn."
        normed = [rms_norm(weights[f"{prefix}input_layernorm.weight"], x, 1e-5) for x in xs]
        q, k, v = (
            [split_heads(linear(weights, f"{attention}{name}_proj", x), 6) for x in normed] for name in "qkv"
        )
        for side, name in ((q, "q_norm"), (k, "k_norm")):
            scale = weights.get(f"{attention}{name}.weight")
            for place, heads in enumerate(side):
                plain = heads if scale is None else [rms_norm(scale, head, 1e-5) for head in heads]
                side[place] = [rotate(head, place, 50_000.0) for head in plain]
        mixed = attend(q, k, v, [[True] * len(IDS)] * len(IDS))
        xs = [add(x, linear(weights, f"{attention}o_proj", m)) for x, m in zip(xs, mixed, strict=True)]
        for index, x in enumerate(xs):
            h = rms_norm(weights[f"{prefix}post_attention_layernorm.weight"], x, 1e-5)
            is_sparse = f"{prefix}mlp.gate.weight" in weights
            update = experts(weights, f"{prefix}mlp.", h) if is_sparse else mlp(weights, f"{prefix}mlp.", h)
            if f"{prefix}shared_expert.up_proj.weight" in weights:
                update = add(update, mlp(weights, f"{prefix}shared_expert.", h))
            xs[index] = add(x, update)
    return [rms_norm(weights["model.norm.weight"], x, 1e-5) for x in xs]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_expert_intermediate_size": 14, "num_key_value_heads": 2},
        {"qk_layernorm": False, "attention_bias": True},
        {"norm_topk_prob": True},
    ],
    ids=["plain", "shared expert", "biases", "a field that the published code does not read"],
)
def test_states_equal_the_transcription(changes: dict[str, Any]) -> None:
    model = teacher(**changes)
    expected = torch.tensor(transcription(model), dtype=torch.float64)
    # float32 enters through the rotary frequencies alone.
    torch.testing.assert_close(model.double()(torch.tensor([IDS]))[0], expected, atol=1e-5, rtol=1e-5)


def test_the_value_is_what_it_was() -> None:
    model = teacher().double()
    with torch.no_grad():
        logits = model.lm_head(model(torch.tensor([IDS])))
    assert float(logits.abs().mean()) == pytest.approx(1.250273008638099, rel=1e-6)


@pytest.mark.parametrize("model_type", ["llada", "lladamoe", "llada_moe"])
def test_the_genuine_layout_round_trips_under_each_of_its_names(model_type: str, tmp_path: Path) -> None:
    model = teacher(shared_expert_intermediate_size=14)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["dense_intermediate_size"] == 28
    assert "intermediate_size" not in saved
    (tmp_path / "config.json").write_text(json.dumps(saved | {"model_type": model_type}))
    loaded = load_teacher(tmp_path)
    assert isinstance(loaded, LLaDAMoeModel)
    assert loaded.config == model.config
    assert torch.equal(loaded(torch.tensor([IDS])), model(torch.tensor([IDS])))
    assert "model.layers.1.shared_expert.gate_proj.weight" in loaded.checkpoint_tensors()
    assert not any("expert_bias" in key for key in loaded.checkpoint_tensors())


def test_the_published_fields_are_all_known() -> None:
    with capture_logs() as logs:
        LLaDAMoeConfig.from_json(CONFIG)
        LLaDAMoeConfig.from_json(CONFIG | {"norm_topk_prob": True})
    assert [entry["event"] for entry in logs] == ["expert_weights_not_normalised"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("moe_router_enable_expert_bias", True),
        ("moe_router_score_function", "sigmoid"),
        ("routed_scaling_factor", 2.5),
        ("clip_qkv", 8.0),
        ("moe_layer_freq", [1, 1]),
        ("num_experts_per_tok", 9),
    ],
)
def test_what_is_not_computed_is_refused_by_its_field(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        LLaDAMoeConfig.from_json(CONFIG | {name: value})
    assert caught.value.param == name


def test_half_precision_and_devices_leave_a_router_without_bias_whole() -> None:
    model = teacher().to(torch.bfloat16)
    assert model(torch.tensor([IDS])).dtype == torch.bfloat16

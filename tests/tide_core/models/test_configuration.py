"""Configurations: unknown fields pass, contradictions and what is not supported do not."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from tide_core.contracts.errors import CheckpointError
from tide_core.models.dense import DenseConfig
from tide_core.models.rotary import LinearScaling, Llama3Scaling, YarnScaling
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModel

DENSE = ["qwen3", "qwen2", "llama", "wedlm", "a2d-qwen3", "a2d-qwen2", "a2d-llama"]


@pytest.mark.parametrize("model_type", DENSE)
def test_unknown_fields_are_logged_and_left(
    dense_config: Callable[..., DenseConfig], model_type: str
) -> None:
    with capture_logs() as logs:
        config = dense_config(model_type, novelty=3, architectures=["X"])
    assert config == dense_config(model_type)
    assert [(entry["model_type"], entry["fields"]) for entry in logs] == [(model_type, ["novelty"])]


def test_unknown_fields_of_a_mixture_are_logged_and_left(moe_config: Callable[..., LLaDA2MoeConfig]) -> None:
    with capture_logs() as logs:
        config = moe_config(novelty=3, router_dtype="fp32")
    assert config == moe_config()
    assert [entry["fields"] for entry in logs] == [["novelty"]]


@pytest.mark.parametrize("model_type", DENSE)
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "partial_rotary_factor"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_size": 30, "head_dim": None}, "head_dim"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"mask_token_id": 97}, "mask_token_id"),
        ({"eos_token_id": [1, 97]}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"pad_token_id": 97}, "pad_token_id"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"rotary_dim": 4}, "rotary_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "layer_types"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters"),
        (
            {
                "rope_parameters": {"rope_type": "default"},
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            "rope_scaling",
        ),
        ({"model_type": "gpt2"}, "model_type"),
    ],
)
def test_contradictions_are_refused_by_field(
    dense_config: Callable[..., DenseConfig], changes: dict[str, Any], param: str, model_type: str
) -> None:
    fields = dense_config(model_type).to_json() | changes
    with pytest.raises(CheckpointError) as caught:
        DenseConfig.from_json({name: value for name, value in fields.items() if value is not None})
    assert caught.value.param == param


def test_a_missing_field_is_named(dense_config: Callable[..., DenseConfig]) -> None:
    fields = dense_config().to_json()
    del fields["vocab_size"]
    with pytest.raises(CheckpointError, match="vocab_size"):
        DenseConfig.from_json(fields)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n_group": 3}, "n_group"),
        ({"topk_group": 5}, "topk_group"),
        ({"topk_group": 0}, "topk_group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_experts_per_tok": 17, "n_group": 1, "topk_group": 1}, "num_experts_per_tok"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"num_experts": 0}, "n_group"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"rotary_dim": 12}, "rotary_dim"),
        ({"norm_head": True}, "norm_head"),
        ({"moe_router_enable_expert_bias": False}, "moe_router_enable_expert_bias"),
        ({"moe_shared_expert_intermediate_size": 11}, "moe_shared_expert_intermediate_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 26, "head_dim": None}, "head_dim"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_scaling"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok"),
        ({"eos_token_id": 89}, "eos_token_id"),
        ({"mask_token_id": 89}, "mask_token_id"),
        ({"score_function": "softmax"}, "score_function"),
    ],
)
def test_contradictions_of_a_mixture_are_refused_by_field(
    moe_config: Callable[..., LLaDA2MoeConfig], changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        moe_config(**changes)
    assert caught.value.param == param


@pytest.mark.parametrize("model_type", DENSE)
def test_json_round_trip(dense_config: Callable[..., DenseConfig], model_type: str) -> None:
    config = dense_config(model_type, eos_token_id=[1, 2], qk_norm=True, attention_bias=True, mlp_bias=True)
    assert DenseConfig.from_json(config.to_json()) == config
    assert config.family.model_type in model_type


def test_llamas_absent_padding_is_none(dense_config: Callable[..., DenseConfig]) -> None:
    assert dense_config("llama", pad_token_id=-1).pad_token_id == -1


def test_rotary_scalings_round_trip(dense_config: Callable[..., DenseConfig]) -> None:
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    scaled = dense_config(rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.rotary.scaling == LinearScaling(2.0)
    smoothed = dense_config(rope_scaling={"rope_type": "llama3", "factor": 8.0, **llama3})
    assert smoothed.rotary.scaling == Llama3Scaling(8.0, 1.0, 4.0, 32)
    yarn = dense_config(
        rope_scaling={"type": "yarn", "factor": 4.0, "beta_fast": 16}, max_position_embeddings=64
    )
    assert yarn.rotary.scaling == YarnScaling(4.0, 64, 0.1 * math.log(4) + 1, beta_fast=16.0)
    for config in (scaled, smoothed, yarn):
        assert DenseConfig.from_json(config.to_json()) == config


def test_both_rotary_spellings_may_say_the_same(dense_config: Callable[..., DenseConfig]) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    config = dense_config(rope_scaling=scaling, rope_parameters={**scaling, "rope_theta": 10_000.0})
    assert config.rotary.scaling == LinearScaling(2.0)
    with pytest.raises(CheckpointError, match=r"rope_parameters .*'default'.* and rope_scaling .*'linear'"):
        dense_config(rope_scaling=scaling, rope_parameters={"rope_type": "default"})


def test_no_quantisation_is_a_valid_answer(dense_config: Callable[..., DenseConfig]) -> None:
    with capture_logs() as logs:
        assert dense_config(quantization_config=None) == dense_config()
    assert logs == []


@pytest.mark.parametrize("shared", [0, None])
def test_a_mixture_without_shared_experts_is_valid(
    moe_config: Callable[..., LLaDA2MoeConfig], shared: int | None
) -> None:
    config = moe_config(num_shared_experts=shared)
    assert config.num_shared_experts == 0
    assert LLaDA2MoeConfig.from_json(config.to_json()) == config


def test_a_mixture_without_experts_is_dense(moe_config: Callable[..., LLaDA2MoeConfig]) -> None:
    config = moe_config(num_experts=None, num_experts_per_tok=None, moe_intermediate_size=None)
    assert LLaDA2MoeConfig.from_json(config.to_json()) == config
    assert "num_experts" in config.to_json()
    model = LLaDA2MoeModel.from_config(config)
    assert not any("experts" in key or "mlp.gate." in key for key in model.checkpoint_tensors())


def test_weights_that_do_not_sum_to_one_are_honoured_aloud(
    moe_config: Callable[..., LLaDA2MoeConfig],
) -> None:
    with capture_logs() as logs:
        assert moe_config().routing_rule.is_normalised
        assert not moe_config(norm_topk_prob=False).routing_rule.is_normalised
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("expert_weights_not_normalised", "warning")
    ]


def test_the_genuine_sizes_parse() -> None:
    """LLaDA2.0-mini's published sizes, and the counts of parameters that they imply."""
    config = LLaDA2MoeConfig.from_json(
        {
            "model_type": "llada2_moe", "vocab_size": 157184, "hidden_size": 2048, "intermediate_size": 5120,
            "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
            "moe_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "n_group": 8, "topk_group": 4, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
            "partial_rotary_factor": 0.5, "rope_theta": 600000, "rope_scaling": None, "norm_topk_prob": True,
            "router_dtype": "fp32", "score_function": "sigmoid", "moe_router_enable_expert_bias": True,
            "pad_token_id": 156892, "eos_token_id": 156892, "norm_head": False, "hidden_act": "silu",
        }
    )  # fmt: skip
    assert config.rotated_dim == 64
    assert LLaDA2MoeConfig.from_json(config.to_json()) == config

"""SDAR against a slow float64 transcription of its definition, as a teacher and as the start of a student."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.slow_decoder import qwen_states, read_weights, shake
from tide_core.checkpoints.headers import read_config
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.adapter import load_teacher

# The fields of the published 1.7B, with small sizes.
CONFIG: dict[str, Any] = {
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 3,
    "eos_token_id": 3,
    "block_size": 4,
    "mask_token_id": 5,
    "fuse_cross_entropy": True,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 20,
    "initializer_range": 0.3,
    "intermediate_size": 28,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "sdar",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 61,
}
IDS = [7, 8, 9, 5, 11, 5, 13, 5, 5, 16]


def teacher(**changes: Any) -> DenseDecoder:
    model = shake(DenseDecoder.from_config(DenseConfig.from_json(CONFIG | changes), seed=4))
    assert isinstance(model, DenseDecoder)
    return model


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "tie_word_embeddings": True}])
def test_states_equal_the_transcription(changes: dict[str, Any]) -> None:
    """Blocks of four from token 0, no shift: a position's own state answers for it."""
    model = teacher(**changes)
    assert not model.is_shifted
    mask = [[key // 4 <= query // 4 for key in range(10)] for query in range(10)]
    expected = qwen_states(read_weights(model), IDS, range(10), mask, layers=2, head_dim=8, theta=1_000_000.0)
    found = model.double()(torch.tensor([IDS]), torch.tensor(mask)[None])[0]
    # float32 enters through the rotary frequencies alone.
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_the_value_is_what_it_was() -> None:
    model = teacher().double()
    with torch.no_grad():
        logits = model.lm_head(model(torch.tensor([IDS])))
    assert float(logits.abs().mean()) == pytest.approx(1.2074979854040795, rel=1e-6)


def test_the_genuine_layout_round_trips(tmp_path: Path) -> None:
    model = teacher()
    model.save_pretrained(tmp_path)
    saved = read_config(tmp_path)
    assert (saved["model_type"], saved["architectures"]) == ("sdar", ["SDARForCausalLM"])
    loaded = load_teacher(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(torch.tensor([IDS])), model(torch.tensor([IDS])))
    assert isinstance(loaded.config, DenseConfig)
    assert loaded.config.block_size == 4


def test_the_block_size_is_the_familys_where_the_file_names_none() -> None:
    fields = {name: value for name, value in CONFIG.items() if name != "block_size"}
    assert DenseConfig.from_json(fields).block_size == 4


def test_a_student_made_of_it_is_qwen3s_with_the_same_weights(tmp_path: Path) -> None:
    model = teacher()
    model.save_pretrained(tmp_path)
    student = BlockDiffusionStudent.from_causal(tmp_path)
    assert student.config.model_type == "a2d-qwen3"
    assert student.config.block_size == 4
    assert student.config_json()["architectures"] == ["A2DQwen3LMHeadModel"]
    assert torch.equal(student(torch.tensor([IDS])), model(torch.tensor([IDS])))

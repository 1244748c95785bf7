"""The dense shapes against the classes of transformers, in both directions of loading."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tide_core.contracts.errors import CheckpointError
from tide_core.models.dense import DenseDecoder
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.wedlm import WeDLMModel

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 with bias": ("Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama with bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3 scaling": ("Llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 512}),
    "yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": YARN, "max_position_embeddings": 256}),
    "yarn with all its fields": (
        "Qwen2",
        {
            "rope_parameters": {
                **YARN,
                "beta_fast": 8.0,
                "beta_slow": 0.5,
                "mscale": 1.2,
                "mscale_all_dim": 0.7,
                "truncate": False,
            },
            "max_position_embeddings": 256,
        },
    ),
    "yarn with a given amplitude": (
        "Llama",
        {"rope_parameters": YARN | {"attention_factor": 0.8}, "max_position_embeddings": 256},
    ),
    "yarn without the length before": (
        "Qwen3",
        {
            "head_dim": 8,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 2.0},
            "max_position_embeddings": 128,
        },
    ),
    "linear scaling": (
        "Qwen3",
        {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    ),
}


def genuine(family: str, folder: Path) -> Any:
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases too: at their initial ones and zeros, mixing them up would go unnoticed.
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_under_causal_and_arbitrary_masks(family: str, tmp_path: Path) -> None:
    reference = genuine(family, tmp_path)
    ours = DenseDecoder.from_pretrained(tmp_path)
    ids = torch.randint(0, 101, (3, 20))
    positions = torch.randint(0, 200, (3, 20))
    causal = torch.ones(3, 1, 20, 20, dtype=torch.bool).tril()
    arbitrary = (torch.rand(3, 1, 20, 20) < 0.4) | torch.eye(20, dtype=torch.bool)
    with torch.no_grad():
        for mask in (causal, arbitrary):
            expected = reference(ids, attention_mask=mask, position_ids=positions).logits
            torch.testing.assert_close(
                ours.lm_head(ours(ids, mask, positions)), expected, atol=2e-5, rtol=1e-4
            )


@pytest.mark.parametrize(
    "family",
    [
        "qwen3",
        "qwen2",
        "llama 3 scaling",
        "yarn",
        "yarn with all its fields",
        "linear scaling",
        "llama with bias",
    ],
)
def test_an_exported_student_loads_in_plain_transformers(family: str, tmp_path: Path) -> None:
    name, _ = FAMILIES[family]
    genuine(family, tmp_path / "causal")
    student = BlockDiffusionStudent.from_causal(tmp_path / "causal")
    student.save_pretrained(tmp_path / "student", max_shard_bytes=20_000)
    assert (tmp_path / "student" / "model.safetensors.index.json").is_file()
    config = getattr(transformers, f"{name}Config").from_pretrained(tmp_path / "student")
    loaded = getattr(transformers, f"{name}ForCausalLM").from_pretrained(tmp_path / "student", config=config)
    ids = torch.randint(0, 101, (2, 12))
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    with torch.no_grad():
        expected = loaded(ids, attention_mask=mask, position_ids=torch.arange(12).expand(2, -1)).logits
        torch.testing.assert_close(student.lm_head(student(ids)), expected, atol=2e-5, rtol=1e-4)


def test_float64_is_computed_in_float64(tmp_path: Path) -> None:
    genuine("qwen3", tmp_path)
    wide, narrow = (
        DenseDecoder.from_pretrained(tmp_path, dtype=torch.float64),
        DenseDecoder.from_pretrained(tmp_path),
    )
    ids = torch.randint(0, 101, (2, 9))
    assert wide(ids).dtype == torch.float64
    torch.testing.assert_close(wide(ids).float(), narrow(ids), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "has_qk_norm"), [("qwen3", True), ("qwen2", False)])
def test_both_wedlm_variants_are_the_families_they_come_from(
    family: str, has_qk_norm: bool, tmp_path: Path
) -> None:
    reference = genuine(family, tmp_path)
    fields = DenseDecoder.from_pretrained(tmp_path).config_json()
    fields |= {"model_type": "wedlm", "qk_norm": has_qk_norm, "attention_bias": not has_qk_norm}
    ours = WeDLMModel.from_config(fields)
    assert ours.config_json()["architectures"] == ["WeDLMForCausalLM"]
    ours.save_pretrained(tmp_path / "wedlm")
    shutil.copyfile(tmp_path / "model.safetensors", tmp_path / "wedlm" / "model.safetensors")
    ours = WeDLMModel.from_pretrained(tmp_path / "wedlm")
    with pytest.raises(CheckpointError, match="not 'wedlm'"):
        WeDLMModel.from_pretrained(tmp_path)
    assert ours.config.qk_norm is has_qk_norm
    ids = torch.randint(0, 101, (2, 10))
    causal = torch.ones(2, 10, 10, dtype=torch.bool).tril()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.lm_head(ours(ids, causal)), reference(ids).logits, atol=2e-5, rtol=1e-4
        )

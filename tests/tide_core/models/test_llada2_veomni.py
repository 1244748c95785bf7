"""LLaDA2 in dFactory's layout: the experts of a layer stacked in three tensors, and nothing else
different."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tide_core.checkpoints.headers import read_config
from tide_core.models.quantisation import memory_bytes
from tide_core.models.teachers.adapter import load_teacher
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModel
from tide_core.models.teachers.llada2_veomni import LLaDA2VeomniConfig, LLaDA2VeomniModel

IDS = torch.tensor([[3, 50, 7, 7, 88, 5]])


@pytest.fixture
def plain(moe_config: Callable[..., LLaDA2MoeConfig]) -> LLaDA2MoeModel:
    """The split layout, which test_llada2_oracle.py holds against a transcription."""
    return LLaDA2MoeModel.from_config(moe_config(), seed=3)


def stack(plain: LLaDA2MoeModel) -> LLaDA2VeomniModel:
    fields = plain.config.to_json() | {"model_type": "llada2_moe_veomni"}
    model = LLaDA2VeomniModel.from_config(LLaDA2VeomniConfig.from_json(fields), seed=9)
    split, targets = plain.checkpoint_tensors(), model.checkpoint_tensors()
    with torch.no_grad():
        for key, target in targets.items():
            if ".mlp.experts." in key:
                stem, name = key.rsplit(".", 1)
                parts = [
                    split[f"{stem}.{expert}.{name}.weight"] for expert in range(plain.config.num_experts or 0)
                ]
                target.copy_(torch.stack(parts))
            else:
                target.copy_(split[key])
    return model


def test_the_stacked_layout_computes_the_same(plain: LLaDA2MoeModel) -> None:
    assert torch.equal(stack(plain)(IDS), plain(IDS))


def test_the_genuine_layout_round_trips(plain: LLaDA2MoeModel, tmp_path: Path) -> None:
    model = stack(plain)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    shapes = {
        name: list(saved[f"model.layers.1.mlp.experts.{name}_proj"].shape) for name in ("gate", "up", "down")
    }
    assert shapes == {"gate": [16, 10, 24], "up": [16, 10, 24], "down": [16, 24, 10]}
    # The dense layer, the router and the shared expert keep LLaDA2's names.
    for name in ("0.mlp.up_proj", "1.mlp.gate", "1.mlp.shared_experts.up_proj"):
        assert f"model.layers.{name}.weight" in saved
    assert saved["model.layers.1.mlp.gate.expert_bias"].shape == (16,)
    assert read_config(tmp_path)["model_type"] == "llada2_moe_veomni"
    loaded = load_teacher(tmp_path)
    assert isinstance(loaded, LLaDA2VeomniModel)
    assert torch.equal(loaded(IDS), plain(IDS))
    held = load_teacher(tmp_path, quantisation="int8")
    assert memory_bytes(held) < memory_bytes(loaded)


def test_the_value_is_what_it_was(plain: LLaDA2MoeModel) -> None:
    model = stack(plain).double()
    with torch.no_grad():
        logits = model.lm_head(model(IDS))
    assert float(logits.abs().mean()) == pytest.approx(1.2053954184030757, rel=1e-6)

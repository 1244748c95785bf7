"""Models whose logits are of the next token: Dream and Fast-dLLM v2, against a slow float64 transcription."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.slow_decoder import Mask, qwen_states, read_weights, shake
from tide_core.checkpoints.headers import read_config
from tide_core.contracts.errors import CheckpointError
from tide_core.masks.block_attention import block_attention_mask
from tide_core.models.dense import DenseConfig, DenseDecoder
from tide_core.models.reading import read_places
from tide_core.models.student import BlockDiffusionStudent
from tide_core.models.teachers.adapter import load_teacher
from tide_core.samplers.block import sample
from tide_core.samplers.settings import SamplerSettings

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
    "initializer_range": 0.3, "hidden_act": "silu", "use_sliding_window": False, "eos_token_id": 3,
}  # fmt: skip
# The fields of the published files beside their sizes.
CONFIGS: dict[str, dict[str, Any]] = {
    "dream": {
        "model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": 5, "use_mrope": False,
        "rope_scaling": None, "sliding_window": None, "tie_word_embeddings": False,
    },
    "fast_dllm_v2": {
        "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 4,
        "tie_word_embeddings": True, "layer_types": ["full_attention"] * 2, "mask_token_id": 5,
    },
}  # fmt: skip
NAMES = list(CONFIGS)
IDS = [7, 8, 9, 5, 11, 5, 13, 5, 5, 16]
GOLDEN = {"dream": 1.2847026020260681, "fast_dllm_v2": 1.0955209988334584}
Vector = list[float]


def teacher(name: str, **changes: Any) -> DenseDecoder:
    model = shake(DenseDecoder.from_config(DenseConfig.from_json(SIZES | CONFIGS[name] | changes), seed=4))
    assert isinstance(model, DenseDecoder)
    return model


def unshifted(model: DenseDecoder, ids: list[int], positions: list[int], mask: Mask) -> list[Vector]:
    weights = read_weights(model)
    return qwen_states(weights, ids, positions, mask, layers=2, head_dim=6, theta=1_000_000.0)


def compare(found: torch.Tensor, expected: list[Vector]) -> None:
    # float32 enters through the rotary frequencies alone.
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_answered_by_the_state_before(name: str) -> None:
    model = teacher(name)
    assert "model.layers.0.self_attn.q_proj.bias" in model.checkpoint_tensors()
    states = unshifted(model, IDS, list(range(10)), [[True] * 10] * 10)
    # The published code repeats the first position's logits.
    expected = [states[0], *states[:-1]]
    double = model.double()
    compare(double(torch.tensor([IDS]))[0], expected)
    places = read_places(torch.tensor([9, 0, 3, 4]), 1, 10)
    compare(double.forward_at(torch.tensor([IDS]), places), [expected[place] for place in (9, 0, 3, 4)])


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model = teacher(name).double()
    alone = model(torch.tensor([IDS]))[0]
    right, left = torch.tensor([IDS + [0] * 3]), torch.tensor([[0] * 3 + IDS])
    is_real = torch.tensor([[True] * 10 + [False] * 3])
    torch.testing.assert_close(model(right, is_real)[0, :10], alone)
    torch.testing.assert_close(model(left, is_real.flip(-1))[0, 3:], alone)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_answered_by_the_last_state_of_the_block_before(name: str) -> None:
    model = teacher(name)
    mask = [[key // 4 <= query // 4 for key in range(10)] for query in range(10)]
    states = unshifted(model, IDS, list(range(10)), mask)
    compare(model.double()(torch.tensor([IDS]), torch.tensor(mask)[None])[0], [states[0], *states[:-1]])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_token_of_a_noisy_block_is_answered_by_the_clean_copy(name: str) -> None:
    """``[x_t | x_0]``: within a block by the noisy neighbour, across blocks by the clean one."""
    model = teacher(name)
    clean = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    pattern = block_attention_mask(10, 4)
    positions = list(range(10)) * 2
    states = unshifted(model, IDS + clean, positions, pattern.tolist())
    expected = [states[0]]
    for place in range(1, 10):
        expected.append(states[10 + place - 1] if place % 4 == 0 else states[place - 1])
    double = model.double()
    found = double(torch.tensor([IDS + clean]), pattern[None], torch.tensor([positions]))[0]
    compare(found[:10], expected)
    compare(found[10:], [states[10], *states[10:19]])
    places = read_places(torch.tensor([3, 8, 5, 7]), 1, 20)
    read = double.forward_at(torch.tensor([IDS + clean]), places, pattern[None], torch.tensor([positions]))
    compare(read, [expected[place] for place in (3, 8, 5, 7)])


@pytest.mark.parametrize("pads_prompt", [True, False])
def test_the_sampler_needs_no_case_for_it(pads_prompt: bool) -> None:
    """Cached and uncached forwards make the same tokens, and those of a plain loop over shifted logits."""
    model = teacher("fast_dllm_v2").double()
    settings = SamplerSettings(max_new_tokens=8, block_size=4, pads_prompt=pads_prompt)
    prompts = [[7, 8, 9, 10], [11, 12], [20, 21, 22, 23, 24, 25, 26]]
    cached = sample(model, prompts, settings, eos_token_ids=())
    plain = SamplerSettings(max_new_tokens=8, block_size=4, pads_prompt=pads_prompt, uses_cache=False)
    assert sample(model, prompts, plain, eos_token_ids=()) == cached
    reference = DenseDecoder.from_config({**model.config.to_json(), "model_type": "qwen2"}).double()
    reference.load_state_dict(model.state_dict())
    ids = list(prompts[0])
    for _ in range(2):
        ids += [5] * 4
        while 5 in ids:
            mask = torch.tensor([[k // 4 <= q // 4 for k in range(len(ids))] for q in range(len(ids))])
            with torch.no_grad():
                logits = model.lm_head(reference(torch.tensor([ids]), mask[None])[0])
            shifted = torch.cat([logits[:1], logits[:-1]]).softmax(-1)
            shifted[:, 5] = 0.0
            place = max((p for p, t in enumerate(ids) if t == 5), key=lambda p: float(shifted[p].max()))
            ids[place] = int(shifted[place].argmax())
    assert cached.ids[0] == ids[4:]


@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_what_it_was(name: str) -> None:
    model = teacher(name).double()
    with torch.no_grad():
        logits = model.lm_head(model(torch.tensor([IDS])))
    assert float(logits.abs().mean()) == pytest.approx(GOLDEN[name], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_genuine_layout_round_trips(name: str, tmp_path: Path) -> None:
    model = teacher(name)
    model.save_pretrained(tmp_path)
    saved = read_config(tmp_path)
    for field in ("model_type", "architectures", "bd_size"):
        assert saved.get(field) == CONFIGS[name].get(field)
    loaded = load_teacher(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(torch.tensor([IDS])), model(torch.tensor([IDS])))


def test_gradients_flow_through_the_move() -> None:
    model = teacher("dream")
    model(torch.tensor([IDS])).square().sum().backward()
    assert all(each.grad is not None for name, each in model.named_parameters() if name != "lm_head.weight")


def test_they_are_teachers_only(tmp_path: Path) -> None:
    teacher("dream").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="A Dream model is a teacher"):
        BlockDiffusionStudent.from_causal(tmp_path)


def test_another_model_of_the_same_name_is_refused(tmp_path: Path) -> None:
    teacher("dream").save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace("DreamModel", "DreamForCausalLM")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="Dream \\(DreamForCausalLM\\)") as caught:
        load_teacher(tmp_path)
    assert caught.value.code == "unknown_architecture"


def test_positions_of_several_axes_are_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        teacher("dream", use_mrope=True)
    assert caught.value.param == "use_mrope"

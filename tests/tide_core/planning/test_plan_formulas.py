"""The planner's counts against the real modules: parameters, products, kept activations, layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.tiny_runs import tiny_spec
from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import teacher_types
from tide_core.contracts.job import NoiseSpec, ResolvedJobSpec
from tide_core.contracts.objective import CompDemoContext, FullContext, Pipeline, Variant
from tide_core.contracts.plan import DataExpectations
from tide_core.contracts.scores import Layout, Want
from tide_core.contracts.working_sizes import working_sizes
from tide_core.losses.fused_linear import TargetLogProbs, TidalDivergence
from tide_core.losses.head_pass import Statistic, resolve_keep_bytes, resolve_slice_size, statistics_of
from tide_core.masks.block_attention import compact_layout
from tide_core.models.quantisation import memory_bytes, quantise_layer
from tide_core.models.registry import model_class
from tide_core.planning import costs, memory
from tide_core.planning.costs import Places
from tide_core.planning.noise import draw_sequences, mask_rates
from tide_core.planning.published import PUBLISHED
from tide_core.planning.shapes import ModelShape, model_shape
from tide_core.schedules.noise import noise_schedule
from tide_core.scoring.layouts import Sample, footprint
from workers.teachers.engine import EngineSettings

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mask_token_id": 1,
}
MIXTURE: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
SOFTMAX_MIXTURE: dict[str, Any] = {
    "expert_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 40,
    "qk_layernorm": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3-bias": {"model_type": "qwen3", "attention_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "llama": {"model_type": "llama"},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "wedlm-8b": {"model_type": "wedlm", "qk_norm": True, "attention_bias": False},
    "wedlm-7b": {"model_type": "wedlm"},
    "llada2-stacked": {"model_type": "llada2_moe_veomni"} | MIXTURE,
    # It has no field head_dim.
    "llada": {"model_type": "llada", "head_dim": None},
    "llada-bias": {"model_type": "llada", "head_dim": None, "include_qkv_bias": True, "weight_tying": True},
    "llada-moe": {"model_type": "llada_moe", "moe_layer_freq": [0, 1, 1]} | SOFTMAX_MIXTURE,
    "llada-moe-plain": {"model_type": "llada_moe", "moe_layer_freq": [1, 1, 1], "qk_layernorm": False}
    | SOFTMAX_MIXTURE
    | {"shared_expert_intermediate_size": None, "attention_bias": True},
    "sdar": {"model_type": "sdar", "attention_bias": True},
    "dream": {"model_type": "Dream"},
    "fast-dllm-v2": {"model_type": "Fast_dLLM_Qwen", "tie_word_embeddings": True},
    "a2d-qwen3": {"model_type": "a2d-qwen3", "tie_word_embeddings": True},
    "a2d-qwen2": {"model_type": "a2d-qwen2"},
    "a2d-llama": {"model_type": "a2d-llama"},
    "llada2": {"model_type": "llada2_moe"} | MIXTURE,
    "llada2-bias": {"model_type": "llada2_moe", "use_qkv_bias": True, "use_bias": True, "use_qk_norm": False}
    | MIXTURE
    | {"num_shared_experts": 0, "first_k_dense_replace": 0},
    "llada2-null-shared": {"model_type": "llada2_moe"} | MIXTURE | {"num_shared_experts": None},
    "llada2-dense": {"model_type": "llada2_moe", "num_experts": None},
}


def built(name: str) -> tuple[Any, ModelShape]:
    config = SIZES | CONFIGS[name]
    model = model_class(config["model_type"]).from_config(config, seed=1)
    return model, model_shape(config, "model")


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_exactly(name: str) -> None:
    model, shape = built(name)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_weight_bytes_are_those_of_the_loaded_model(name: str) -> None:
    model, shape = built(name)
    model = model.to(torch.bfloat16)
    stored = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert memory.weight_bytes(shape, "bfloat16") == stored


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
@pytest.mark.parametrize("name", ["wedlm-8b", "llada2"])
def test_quantised_weight_bytes_are_those_of_the_loaded_model(name: str, quantisation: Any) -> None:
    # Widths are whole groups of 32 here: others are padded to them.
    wide = {"hidden_size": 64, "intermediate_size": 96}
    wide |= {"moe_intermediate_size": 32} if name == "llada2" else {}
    config = SIZES | CONFIGS[name] | wide
    model = model_class(config["model_type"]).from_config(config, seed=1).to(torch.bfloat16)
    for number, layer in enumerate(model.layers):
        quantise_layer(layer, quantisation, f"layers.{number}")
    shape = model_shape(config, "model")
    assert memory.weight_bytes(shape, "bfloat16", quantisation) == memory_bytes(model)


def test_published_models_have_their_published_sizes() -> None:
    billions = {name: model_shape(config, name).parameters / 1e9 for name, config in PUBLISHED.items()}
    assert billions["inclusionAI/LLaDA2.0-mini"] == pytest.approx(16, rel=0.02)
    assert billions["tencent/WeDLM-8B-Instruct"] == pytest.approx(8.2, rel=0.01)
    assert billions["Qwen/Qwen3-0.6B"] == pytest.approx(0.596, rel=0.001)


def test_every_architecture_of_a_teacher_is_known() -> None:
    assert {config["model_type"] for config in CONFIGS.values()} == set(teacher_types())


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_products_of_a_forward_are_those_that_torch_counts(name: str, has_mask: bool) -> None:
    model, shape = built(name)
    rows, length = 2, 24
    ids = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.ones(rows, length, length, dtype=torch.bool).tril() if has_mask else None
    # torch's counter knows the products of the plain form, not the CPU's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, mask)
    planned = costs.forward(shape, Places.whole(rows, length), "float32", is_grouped=False).flops
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("name", ["a2d-qwen3", "a2d-qwen2", "a2d-llama"])
def test_products_of_a_training_step_are_those_that_torch_counts(name: str, is_checkpointed: bool) -> None:
    model, shape = built(name)
    model.train()
    model.activation_checkpointing = is_checkpointed
    rows, length = 2, 32
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(rows, length, dtype=torch.long)).square().sum().backward()
    places = Places.whole(rows, length)
    planned = costs.training(shape, places, "float32", is_checkpointed=is_checkpointed).flops
    # Fused attention computes its scores again in the backward pass; the plain form, counted here, kept them.
    again = 0.5 * shape.layers * costs.attention_flops(shape, rows * length, length)
    assert planned - again == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("is_kept", [True, False])
def test_products_of_the_losses_are_those_that_torch_counts(is_kept: bool) -> None:
    draws = torch.Generator().manual_seed(1)
    rows, vocab, hidden, theirs = 7, 60, 16, 24
    head = torch.randn(vocab, hidden, generator=draws, requires_grad=True)
    states = torch.randn(rows, hidden, generator=draws, requires_grad=True)
    teacher = torch.randn(rows, theirs, generator=draws), torch.randn(vocab, theirs, generator=draws)
    keep_bytes = None if is_kept else 0
    again = 0 if is_kept else 1

    def counted(*statistics: Statistic) -> int:
        with FlopCounterMode(display=False) as counter:
            values = statistics_of(states, head, statistics, slice_size=100, keep_bytes=keep_bytes)
            torch.stack(values).sum().backward()
        return counter.get_total_flops()

    own = costs.head_product(rows, vocab, hidden, 4).flops
    tokens = TargetLogProbs(torch.arange(rows))
    tidal = TidalDivergence(*teacher, torch.full((rows,), 0.5), temperature=2.0, shared_vocab=vocab)
    other = costs.head_product(rows, vocab, theirs, 4).flops
    assert counted(tokens) == (3 + again) * own
    # The student's logits are shared by all statistics.
    assert counted(TargetLogProbs(torch.arange(rows)), tidal) == (3 + again) * own + (1 + again) * other


def kept_bytes(model: Any, ids: Tensor, mask: Tensor) -> int:
    """Bytes of storage that autograd keeps, weights and mask left out."""
    outside = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in outside:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(ids, mask)
        assert output.requires_grad
        return sum(found.values())


@pytest.mark.parametrize("name", ["a2d-qwen3", "a2d-qwen2", "a2d-llama"])
def test_activations_that_autograd_keeps_are_those_planned(name: str) -> None:
    model, shape = built(name)
    rows, length = 4, 64
    mask = torch.ones(rows, length, length, dtype=torch.bool).tril()
    kept = kept_bytes(model, torch.zeros(rows, length, dtype=torch.long), mask)
    always, own = memory.kept_numbers(shape)
    planned = 4 * rows * length * shape.layers * (always + own)
    assert planned == pytest.approx(kept, rel=0.15)


def test_checkpointing_keeps_what_is_planned_for_it() -> None:
    model, shape = built("a2d-qwen3")
    model.train()
    rows, length = 4, 64
    mask = torch.ones(rows, length, length, dtype=torch.bool).tril()
    ids = torch.zeros(rows, length, dtype=torch.long)
    model.activation_checkpointing = True
    kept = kept_bytes(model, ids, mask)
    # A layer's input each, beside what the last norm keeps.
    assert kept == pytest.approx(4 * rows * length * (shape.layers + 2) * shape.hidden, rel=0.2)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_mask_rates_are_those_of_the_noise_schedule(schedule: Any) -> None:
    times = np.linspace(0.01, 0.99, 50)
    planned = mask_rates(NoiseSpec(schedule=schedule), times)
    np.testing.assert_allclose(planned, 1.0 - noise_schedule(schedule).alpha(times), rtol=1e-12)


def test_the_workers_take_the_sizes_that_the_planner_counts() -> None:
    for name, is_accelerator in (("cpu", False), ("cuda", True)):
        settings = EngineSettings.for_device(torch.device(name))
        sizes = working_sizes(is_accelerator=is_accelerator)
        assert sizes.batch_tokens == settings.max_batch_tokens
        assert sizes.queued_tokens == settings.max_queued_tokens
        assert (sizes.readout_rows, sizes.readout_vocab) == (settings.row_slice, settings.vocab_slice)
        hidden = torch.empty(1, 1, device="cpu" if name == "cpu" else "meta")
        assert sizes.loss_tile == resolve_slice_size(None, hidden)
        assert sizes.loss_kept_bytes == resolve_keep_bytes(None, hidden)


def spec_of(layout: Layout, *, has_views: bool) -> ResolvedJobSpec:
    pipeline = Pipeline.SHARED_TOKENIZER if layout is Layout.BLOCK_STAIRCASE else Pipeline.CROSS_TOKENIZER
    spec = tiny_spec(Variant.BASELINE, pipeline)
    context = CompDemoContext() if has_views else FullContext()
    teacher = spec.teacher.model_copy(update={"attention": layout.value})
    return spec.model_copy(update={"teacher": teacher, "teacher_context": context})


@pytest.mark.parametrize("has_views", [False, True])
@pytest.mark.parametrize("layout", Layout)
def test_drawn_sizes_are_those_of_the_layouts(layout: Layout, has_views: bool) -> None:
    """The same timesteps, masks of the engine's own samples and the students' own layout, in the mean."""
    spec = spec_of(layout, has_views=has_views)
    sizes = draw_sequences(spec, DataExpectations(tokens_per_chunk=1.0, teacher_tokens_per_token=1.5))
    assert (sizes.tokens, sizes.teacher_tokens) == (32, 48)
    draws = np.random.default_rng(5)
    kept, rows, tokens, asked = [], [], [], []
    for t in draws.random(1500):
        is_masked = torch.from_numpy((np.arange(32) >= 16) & (draws.random(32) < t))[None]
        if is_masked.any():
            kept.append(int((~compact_layout(is_masked, torch.tensor([32]), 8).is_padding).sum()))
        else:
            kept.append(0)
        groups = ((np.arange(48) >= 24) & (draws.random(48) < t)).astype(np.uint8)
        if has_views:
            groups *= draws.integers(1, 3, 48).astype(np.uint8)
        ids = np.zeros(48, np.int32)
        size = footprint(Sample(ids, groups, layout, 8, Want.TARGET_LOG_PROB))
        rows.append(size.rows)
        tokens.append(size.tokens)
        asked.append(int((groups > 0).sum()))
    assert sizes.kept.mean() == pytest.approx(np.mean(kept), rel=0.03)
    assert sizes.teacher_rows.mean() == pytest.approx(np.mean(rows), rel=0.03)
    assert (sizes.teacher_rows * sizes.teacher_lengths).mean() == pytest.approx(np.mean(tokens), rel=0.03)
    assert sizes.teacher_masked.mean() == pytest.approx(np.mean(asked), rel=0.04)
    assert np.count_nonzero(sizes.masked) > 0


def test_a_chunk_is_masked_whole() -> None:
    spec = spec_of(Layout.BIDIRECTIONAL, has_views=False)
    single = draw_sequences(spec, DataExpectations(tokens_per_chunk=1.0))
    double = draw_sequences(spec, DataExpectations(tokens_per_chunk=2.0))
    # The mean over t of t and of 1 - (1 - t)^2.
    assert single.masked.mean() == pytest.approx(16 / 2, rel=0.03)
    assert double.masked.mean() == pytest.approx(16 * 2 / 3, rel=0.03)


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [None, 0, "many", True, 1.5])
def test_a_config_without_a_size_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=name) as caught:
        model_shape(SIZES | CONFIGS["qwen3"] | {name: value}, "student.model")
    assert caught.value.param == "student.model"


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        model_shape({"model_type": "mamba"}, "teacher.model")
    assert (caught.value.code, caught.value.param) == ("unknown_architecture", "teacher.model")

"""LLaDA2 against a slow float64 transcription of its definition, and its two expert paths against each
other.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tide_core.contracts.errors import CheckpointError
from tide_core.models import mixture
from tide_core.models.mixture import Experts, Router
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModel
from tide_core.models.teachers.wedlm import WeDLMModel

Weights = dict[str, Tensor]
Vector = list[float]


def linear(weights: Weights, key: str, x: Vector) -> Vector:
    return [
        math.fsum(w * v for w, v in zip(row, x, strict=True)) for row in weights[key + ".weight"].tolist()
    ]


def norm(weight: Tensor, x: Vector, eps: float) -> Vector:
    scale = 1 / math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [v * scale * w for v, w in zip(x, weight.tolist(), strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def feed_forward(weights: Weights, prefix: str, x: Vector) -> Vector:
    gate, up = linear(weights, prefix + "gate_proj", x), linear(weights, prefix + "up_proj", x)
    return linear(weights, prefix + "down_proj", [g * sigmoid(g) * u for g, u in zip(gate, up, strict=True)])


def route(config: LLaDA2MoeConfig, weights: Weights, prefix: str, x: Vector) -> dict[int, float]:
    """Expert -> weight, by sorting in plain Python."""
    scores = [sigmoid(v) for v in linear(weights, prefix + "gate", x)]
    biased = [s + b for s, b in zip(scores, weights[prefix + "gate.expert_bias"].tolist(), strict=True)]
    size = config.num_experts // config.n_group
    groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
    group_score = [sum(sorted((biased[e] for e in group), reverse=True)[:2]) for group in groups]
    best = sorted(range(config.n_group), key=lambda g: -group_score[g])[: config.topk_group]
    allowed = [e for g in best for e in groups[g]]
    chosen = sorted(allowed, key=lambda e: -biased[e])[: config.num_experts_per_tok]
    is_normalised = config.norm_topk_prob and config.num_experts_per_tok > 1
    total = sum(scores[e] for e in chosen) + 1e-20 if is_normalised else 1.0
    return {e: scores[e] / total * config.routed_scaling_factor for e in chosen}


def rotated(config: LLaDA2MoeConfig, x: Vector, position: int) -> Vector:
    dims = int(config.head_dim * 0.5)
    half = dims // 2
    result = list(x)
    for i in range(half):
        angle = position * 600_000.0 ** (-2 * i / dims)
        result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        result[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return result


def attention(
    config: LLaDA2MoeConfig,
    weights: Weights,
    prefix: str,
    xs: list[Vector],
    positions: list[int],
    mask: Tensor,
) -> list[Vector]:
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    queries, keys, values = [], [], []
    for x, position in zip(xs, positions, strict=True):
        fused = linear(weights, prefix + "query_key_value", x)
        parts = [fused[i * dim : (i + 1) * dim] for i in range(heads + 2 * kv_heads)]
        q_norm, k_norm = weights[prefix + "query_layernorm.weight"], weights[prefix + "key_layernorm.weight"]
        queries.append([rotated(config, norm(q_norm, p, 1e-6), position) for p in parts[:heads]])
        keys.append(
            [rotated(config, norm(k_norm, p, 1e-6), position) for p in parts[heads : heads + kv_heads]]
        )
        values.append(parts[heads + kv_heads :])
    outputs = []
    for i in range(len(xs)):
        mixed: Vector = []
        for head in range(heads):
            kv = head // (heads // kv_heads)
            seen = [j for j in range(len(xs)) if mask[i, j]]
            logits = [
                math.fsum(a * b for a, b in zip(queries[i][head], keys[j][kv], strict=True)) / math.sqrt(dim)
                for j in seen
            ]
            top = max(logits)
            exps = [math.exp(v - top) for v in logits]
            total = sum(exps)
            mixed += [
                sum(e / total * values[j][kv][d] for e, j in zip(exps, seen, strict=True)) for d in range(dim)
            ]
        outputs.append(linear(weights, prefix + "dense", mixed))
    return outputs


def oracle(
    config: LLaDA2MoeConfig, weights: Weights, ids: list[int], positions: list[int], mask: Tensor
) -> list[Vector]:
    xs = [weights["model.word_embeddings.weight"][token].tolist() for token in ids]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        normed = [norm(weights[prefix + "input_layernorm.weight"], x, 1e-6) for x in xs]
        mixed = attention(config, weights, prefix + "attention.", normed, positions, mask)
        xs = [[a + b for a, b in zip(x, m, strict=True)] for x, m in zip(xs, mixed, strict=True)]
        for index, x in enumerate(xs):
            h = norm(weights[prefix + "post_attention_layernorm.weight"], x, 1e-6)
            if config.num_experts is None or layer < config.first_k_dense_replace:
                update = feed_forward(weights, prefix + "mlp.", h)
            else:
                update = [0.0] * len(h)
                if config.num_shared_experts:
                    update = feed_forward(weights, prefix + "mlp.shared_experts.", h)
                for expert, weight in route(config, weights, prefix + "mlp.", h).items():
                    part = feed_forward(weights, f"{prefix}mlp.experts.{expert}.", h)
                    update = [u + weight * v for u, v in zip(update, part, strict=True)]
            xs[index] = [a + b for a, b in zip(x, update, strict=True)]
    return [norm(weights["model.norm.weight"], x, 1e-6) for x in xs]


def shaken(config: LLaDA2MoeConfig, seed: int = 3) -> LLaDA2MoeModel:
    """A model whose norms and expert biases are away from their initial ones and zeros."""
    model = LLaDA2MoeModel.from_config(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.checkpoint_tensors().items():
            if tensor.ndim == 1:
                scale = 0.1 if "expert_bias" in key else 0.3
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_experts_per_tok": 1},
        {"n_group": 8, "topk_group": 3},
        {"n_group": 16, "topk_group": 5},
        {"norm_topk_prob": False},
        {"num_shared_experts": None},
        {"num_shared_experts": 2},
        {"num_experts": None},
    ],
    ids=[
        "plain",
        "one expert a token",
        "groups of two",
        "groups of one",
        "weights as they are",
        "no shared expert",
        "two shared experts",
        "no experts",
    ],
)
def test_hidden_states_equal_the_transcription(
    moe_config: Callable[..., LLaDA2MoeConfig], changes: dict
) -> None:
    config = moe_config(**changes)
    model = shaken(config)
    ids, positions = [3, 50, 7, 7, 88, 5], [0, 1, 2, 9, 40, 41]
    mask = (torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.6) | torch.eye(
        6, dtype=torch.bool
    )
    weights = {key: tensor.detach().double() for key, tensor in model.checkpoint_tensors().items()}
    expected = torch.tensor(oracle(config, weights, ids, positions, mask), dtype=torch.float64)
    hidden = model.double()(torch.tensor([ids]), mask[None], torch.tensor([positions]))[0]
    # float32 enters through the rotary frequencies and the router's bias only.
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    single = shaken(config)(torch.tensor([ids]), mask[None], torch.tensor([positions]))[0]
    torch.testing.assert_close(single.double(), expected, atol=1e-4, rtol=1e-3)


def test_the_bias_moves_the_choice_and_not_the_weight(moe_config: Callable[..., LLaDA2MoeConfig]) -> None:
    config = moe_config(n_group=1, topk_group=1)
    router = Router(config.hidden_size, config.routing_rule)
    with torch.no_grad():
        router.weight.normal_(generator=torch.Generator().manual_seed(0))
        router.expert_bias.zero_()
        router.expert_bias[[2, 9, 11]] = 10.0
    tokens = torch.randn(5, config.hidden_size)
    weights, experts = router(tokens)
    assert experts.sort(-1).values.tolist() == [[2, 9, 11]] * 5
    scores = (tokens @ router.weight.T).sigmoid().gather(1, experts)
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True) * 2.5)
    torch.testing.assert_close(weights.sum(-1), torch.full((5,), 2.5))


def test_looped_and_grouped_experts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    experts = Experts(6, 16, 24)
    torch.nn.init.normal_(experts.gate_up, std=0.3)
    torch.nn.init.normal_(experts.down, std=0.3)
    tokens = torch.randn(8, 16, requires_grad=True)
    weights = torch.rand(8, 2, requires_grad=True)
    # Experts 1 and 4 have no token.
    chosen = torch.tensor([[0, 2], [5, 0], [2, 5], [3, 2], [5, 2], [0, 5], [2, 5], [5, 3]])
    looped = experts(tokens, weights, chosen)
    monkeypatch.setattr(mixture, "uses_grouped_product", lambda rows: True)
    grouped = experts(tokens, weights, chosen)
    torch.testing.assert_close(looped, grouped, atol=1e-6, rtol=1e-5)
    upstream = torch.randn_like(looped)
    inputs = [experts.gate_up, experts.down, tokens, weights]
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (looped, grouped)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_batch_and_padding_do_not_change_a_row(moe_config: Callable[..., LLaDA2MoeConfig]) -> None:
    model = shaken(moe_config())
    short, long = torch.randint(0, 89, (7,)), torch.randint(0, 89, (12,))
    batch = torch.stack([torch.cat([short, torch.zeros(5, dtype=torch.long)]), long])
    left = torch.stack([torch.cat([torch.zeros(5, dtype=torch.long), short]), long])
    is_real = torch.ones(2, 12, dtype=torch.bool)
    is_real[0, 7:] = False
    alone = model(short[None])[0]
    torch.testing.assert_close(model(batch, is_real)[0, :7], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(left, is_real.flip(-1))[0, 5:], alone, atol=1e-5, rtol=1e-4)
    assert model(left, is_real.flip(-1)).isfinite().all()


def test_the_genuine_layout_round_trips(moe_config: Callable[..., LLaDA2MoeConfig], tmp_path: Path) -> None:
    model = shaken(moe_config())
    model.save_pretrained(tmp_path, max_shard_bytes=8_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = LLaDA2MoeModel.from_pretrained(tmp_path)
    ids = torch.randint(0, 89, (2, 9))
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.config == model.config
    assert loaded.config_json()["architectures"] == ["LLaDA2MoeModelLM"]


def test_the_expert_bias_stays_in_float32(moe_config: Callable[..., LLaDA2MoeConfig], tmp_path: Path) -> None:
    model = shaken(moe_config())
    bias = model.checkpoint_tensors()["model.layers.1.mlp.gate.expert_bias"].clone()
    model.save_pretrained(tmp_path)
    for half in (LLaDA2MoeModel.from_pretrained(tmp_path, dtype=torch.bfloat16), model.to(torch.bfloat16)):
        kept = half.checkpoint_tensors()["model.layers.1.mlp.gate.expert_bias"]
        assert kept.dtype == torch.float32
        assert torch.equal(kept, bias)
        assert half(torch.randint(0, 89, (1, 6))).dtype == torch.bfloat16


def test_every_weight_gets_a_gradient(moe_config: Callable[..., LLaDA2MoeConfig]) -> None:
    model = shaken(moe_config(num_experts=4, n_group=2, topk_group=2))
    hidden = model(torch.randint(0, 89, (4, 16)))
    model.lm_head(hidden).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("expert_bias"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_biases_and_absent_shared_experts_round_trip(
    moe_config: Callable[..., LLaDA2MoeConfig], tmp_path: Path
) -> None:
    config = moe_config(use_qkv_bias=True, use_bias=True, use_qk_norm=False, num_shared_experts=0)
    model = shaken(config)
    model.save_pretrained(tmp_path)
    keys = set(model.checkpoint_tensors())
    assert "model.layers.0.attention.query_key_value.bias" in keys
    assert "model.layers.0.attention.dense.bias" in keys
    assert not any("shared_experts" in key or ("layernorm" in key and "attention." in key) for key in keys)
    ids = torch.randint(0, 89, (1, 7))
    assert torch.equal(LLaDA2MoeModel.from_pretrained(tmp_path)(ids), model(ids))


def test_other_configurations_are_refused(moe_config: Callable[..., LLaDA2MoeConfig]) -> None:
    with pytest.raises(CheckpointError, match="not 'llada2_moe'") as caught:
        moe_config(model_type="bailing_moe")
    assert caught.value.code == "unknown_architecture"
    with pytest.raises(CheckpointError, match="takes a DenseConfig"):
        WeDLMModel.from_config(moe_config())


def test_no_tokens_are_no_trouble() -> None:
    experts = Experts(3, 8, 4)
    chosen = torch.zeros(0, 2, dtype=torch.long)
    assert experts(torch.zeros(0, 8), torch.zeros(0, 2), chosen).shape == (0, 8)

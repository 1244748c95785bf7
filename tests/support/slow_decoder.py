"""Pieces of a decoder in plain Python and float64, one number at a time: what oracles of model families are
written with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tide_core.models.decoder import Decoder

Weights = dict[str, Tensor]
Vector = list[float]
Mask = list[list[bool]]


def read_weights(model: Decoder) -> Weights:
    """A model's weights under the checkpoint's names, in float64."""
    return {key: tensor.detach().double() for key, tensor in model.checkpoint_tensors().items()}


def shake(model: Decoder, seed: int = 3) -> Decoder:
    """Move norms and biases away from their initial ones and zeros, where mixing them up would go
    unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.checkpoint_tensors().values():
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def add(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def linear(weights: Weights, key: str, x: Vector) -> Vector:
    """``W x``, plus the bias where the checkpoint holds one."""
    product = [
        math.fsum(w * v for w, v in zip(row, x, strict=True)) for row in weights[f"{key}.weight"].tolist()
    ]
    bias = weights.get(f"{key}.bias")
    return product if bias is None else add(product, bias.tolist())


def rms_norm(weight: Tensor, x: Vector, eps: float) -> Vector:
    scale = 1 / math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [v * scale * w for v, w in zip(x, weight.tolist(), strict=True)]


def gate(x: float) -> float:
    """``silu``."""
    return x / (1 + math.exp(-x))


def feed_forward(weights: Weights, gate_key: str, up_key: str, down_key: str, x: Vector) -> Vector:
    pairs = zip(linear(weights, gate_key, x), linear(weights, up_key, x), strict=True)
    return linear(weights, down_key, [gate(g) * u for g, u in pairs])


def rotate(x: Vector, position: int, theta: float) -> Vector:
    """Dimension i turns with dimension i + half by ``position * theta^(-2i / size)``."""
    half = len(x) // 2
    result = list(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        result[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        result[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return result


def split_heads(x: Vector, size: int) -> list[Vector]:
    return [x[start : start + size] for start in range(0, len(x), size)]


def attend(
    queries: list[list[Vector]], keys: list[list[Vector]], values: list[list[Vector]], mask: Mask
) -> list[Vector]:
    """What each position mixes, heads side by side; [position][head] of queries, [position][kv head] of
    others."""
    outputs = []
    for position, heads in enumerate(queries):
        seen = [other for other in range(len(keys)) if mask[position][other]]
        mixed: Vector = []
        for number, query in enumerate(heads):
            shared = number // (len(heads) // len(keys[0]))
            scores = [
                math.fsum(a * b for a, b in zip(query, keys[other][shared], strict=True))
                / math.sqrt(len(query))
                for other in seen
            ]
            powers = [math.exp(score - max(scores)) for score in scores]
            total = math.fsum(powers)
            mixed += [
                math.fsum(p * values[other][shared][d] for p, other in zip(powers, seen, strict=True)) / total
                for d in range(len(query))
            ]
        outputs.append(mixed)
    return outputs


def qwen_states(
    weights: Weights,
    ids: Sequence[int],
    positions: Sequence[int],
    mask: Mask,
    *,
    layers: int,
    head_dim: int,
    theta: float,
    eps: float = 1e-6,
) -> list[Vector]:
    """Final states of a decoder with Qwen's names: norms of q and k, and biases, where the checkpoint has
    them."""
    xs = [weights["model.embed_tokens.weight"][token].tolist() for token in ids]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        normed = [rms_norm(weights[f"{prefix}input_layernorm.weight"], x, eps) for x in xs]
        parts: dict[str, list[list[Vector]]] = {}
        for name in ("q", "k", "v"):
            heads = [
                split_heads(linear(weights, f"{prefix}self_attn.{name}_proj", x), head_dim) for x in normed
            ]
            scale = weights.get(f"{prefix}self_attn.{name}_norm.weight")
            if scale is not None:
                heads = [[rms_norm(scale, head, eps) for head in place] for place in heads]
            if name != "v":
                heads = [
                    [rotate(head, position, theta) for head in place]
                    for place, position in zip(heads, positions, strict=True)
                ]
            parts[name] = heads
        mixed = attend(parts["q"], parts["k"], parts["v"], mask)
        xs = [add(x, linear(weights, f"{prefix}self_attn.o_proj", m)) for x, m in zip(xs, mixed, strict=True)]
        for index, x in enumerate(xs):
            h = rms_norm(weights[f"{prefix}post_attention_layernorm.weight"], x, eps)
            mlp = f"{prefix}mlp."
            update = feed_forward(weights, f"{mlp}gate_proj", f"{mlp}up_proj", f"{mlp}down_proj", h)
            xs[index] = add(x, update)
    return [rms_norm(weights["model.norm.weight"], x, eps) for x in xs]

"""Building blocks shared by all decoders: RMS norm, attention over any boolean mask, the gated feed-forward.

Projections that read the same input are fused (query, key and value; gate and up), which saves kernel
launches on small models. Checkpoints keep the genuine names: ``checkpoint_tensors`` gives views into the
fused parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tide_core.models.cache import KeyValueCache
from tide_core.models.gating import apply_gate
from tide_core.models.reading import ReadPlaces
from tide_core.models.rotary import rotate

# What ``attend`` takes: a mask that broadcasts to [batch, head, query, key] (booleans, or what is added to
# the scores), a FlexAttention block mask (the fast form on GPU), or None where every query may attend to
# every key.
AttentionPattern = Bool[Tensor, "#batch 1 query key"] | Float[Tensor, "#batch 1 query key"] | BlockMask | None

# torch's own annotation is too vague to be called under strict checks.
_FLEX_ATTENTION: Callable[..., Any] = cast(Any, flex_attention)


@dataclass(frozen=True)
class LayerContext:
    """What all layers of one forward share."""

    cosines: Float[Tensor, "batch seq 1 half"]
    sines: Float[Tensor, "batch seq 1 half"]
    pattern: AttentionPattern
    cache: KeyValueCache | None


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, computed in at least float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, values: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(values.dtype)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    # Uncompiled it would hold the whole matrix of scores, which is what it is there to avoid.
    return torch.compile(_FLEX_ATTENTION)


def as_bias(pattern: AttentionPattern, like: Tensor) -> AttentionPattern:
    """A boolean mask as what is added to the scores, in the dtype that attention on ``like`` runs in.

    Once a forward: of a boolean mask torch makes this again in every layer.
    """
    if not isinstance(pattern, Tensor):
        return pattern
    device = like.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
    return torch.zeros_like(pattern, dtype=dtype).masked_fill_(~pattern, float("-inf"))


def attend(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch kv_head key dim"],
    value: Float[Tensor, "batch kv_head key dim"],
    pattern: AttentionPattern,
) -> Float[Tensor, "batch head query dim"]:
    """Scaled dot-product attention with grouped heads. Every query row of the pattern must have a key."""
    is_grouped = query.shape[1] != key.shape[1]
    if isinstance(pattern, BlockMask):
        flex = _compiled_flex_attention() if query.is_cuda else _FLEX_ATTENTION
        output = flex(query, key, value, block_mask=pattern, enable_gqa=is_grouped)
        assert isinstance(output, Tensor)
        return output
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=pattern, enable_gqa=is_grouped
    )


@dataclass(frozen=True)
class AttentionShape:
    """Sizes and options of one attention layer."""

    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    has_qk_norm: bool
    has_qkv_bias: bool
    has_output_bias: bool
    norm_eps: float

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding, optional RMS norm of q and k per head, any mask."""

    def __init__(self, shape: AttentionShape, layer: int) -> None:
        super().__init__()
        self.shape = shape
        self.layer = layer
        fused = shape.query_width + 2 * shape.key_width
        self.query_key_value = nn.Linear(shape.hidden_size, fused, bias=shape.has_qkv_bias)
        self.output = nn.Linear(shape.query_width, shape.hidden_size, bias=shape.has_output_bias)
        self.query_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.has_qk_norm else None
        self.key_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.has_qk_norm else None

    def forward(
        self, hidden: Float[Tensor, "batch seq hidden"], context: LayerContext
    ) -> Float[Tensor, "batch seq hidden"]:
        shape = self.shape
        heads = self.query_key_value(hidden).unflatten(-1, (-1, shape.head_dim))
        query, key, value = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        # Under autocast the norms answer in float32; attention needs one dtype.
        query = rotate(query, context.cosines, context.sines).to(value.dtype).transpose(1, 2)
        key = rotate(key, context.cosines, context.sines).to(value.dtype).transpose(1, 2)
        value = value.transpose(1, 2)
        if context.cache is not None:
            key, value = context.cache.write(self.layer, key, value)
        mixed = attend(query, key, value, context.pattern)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def checkpoint_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Views of the weights by the names ``<prefix>{q,k,v,o}_proj.*`` and
        ``<prefix>{q,k}_norm.weight``."""
        tensors = self.projection_tensors(prefix, ("q_proj", "k_proj", "v_proj"), "o_proj")
        if self.query_norm is not None and self.key_norm is not None:
            tensors[f"{prefix}q_norm.weight"] = self.query_norm.weight
            tensors[f"{prefix}k_norm.weight"] = self.key_norm.weight
        return tensors

    def projection_tensors(
        self, prefix: str, names: tuple[str, str, str], output_name: str
    ) -> dict[str, Tensor]:
        """Views of the projections to queries, keys and values, and of the output's, by the given names."""
        widths = (self.shape.query_width, self.shape.key_width, self.shape.key_width)
        named: dict[str, Tensor | None] = {}
        for kind in ("weight", "bias"):
            fused = getattr(self.query_key_value, kind)
            if fused is not None:
                parts = fused.split_with_sizes(widths)
                named |= {f"{prefix}{name}.{kind}": part for name, part in zip(names, parts, strict=True)}
        named[f"{prefix}{output_name}.weight"] = self.output.weight
        named[f"{prefix}{output_name}.bias"] = self.output.bias
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def at(
        self, hidden: Float[Tensor, "batch seq hidden"], context: LayerContext, places: ReadPlaces
    ) -> Float[Tensor, "masked hidden"]:
        """``forward`` at some places: queries there alone, keys and values everywhere."""
        assert not isinstance(context.pattern, BlockMask)
        heads = (-1, self.shape.head_dim)
        query, key_value = (torch.unflatten(part, -1, heads) for part in self._projected_at(hidden, places))
        key, value = key_value.chunk(2, dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        cosines, sines = (
            table.flatten(0, 1)[places.index][None] for table in (context.cosines, context.sines)
        )
        query = rotate(query[None], cosines, sines)[0].to(value.dtype)
        key = rotate(key, context.cosines, context.sines).to(value.dtype)
        mixed = attend(
            places.queries(query),
            key.transpose(1, 2),
            value.transpose(1, 2),
            places.pattern(context.pattern),
        )
        return self.output(places.back(mixed))  # type: ignore[no-any-return]

    def _projected_at(self, hidden: Tensor, places: ReadPlaces) -> tuple[Tensor, Tensor]:
        """Queries of the places, and keys and values of everything."""
        projection: nn.Module = self.query_key_value
        widths = (self.shape.query_width, 2 * self.shape.key_width)
        if not isinstance(projection, nn.Linear):  # quantised: its matrix is restored whole
            query, key_value = projection(hidden).split_with_sizes(widths, dim=-1)
            return query.flatten(0, 1)[places.index], key_value
        query_weight, other_weight = projection.weight.split_with_sizes(widths)
        has_bias = projection.bias is not None
        query_bias, other_bias = projection.bias.split_with_sizes(widths) if has_bias else (None, None)
        read = hidden.flatten(0, 1)[places.index]
        return (
            functional.linear(read, query_weight, query_bias),
            functional.linear(hidden, other_weight, other_bias),
        )


class GatedFeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, width: int, *, has_bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.gate_up = nn.Linear(hidden_size, 2 * width, bias=has_bias)
        self.down = nn.Linear(width, hidden_size, bias=has_bias)

    def forward(self, hidden: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes hidden"]:
        return self.down(apply_gate(self.gate_up(hidden)))  # type: ignore[no-any-return]

    def checkpoint_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Views of the weights by the names ``<prefix>{gate,up,down}_proj.{weight,bias}``."""
        tensors = {
            f"{prefix}gate_proj.weight": self.gate_up.weight[: self.width],
            f"{prefix}up_proj.weight": self.gate_up.weight[self.width :],
            f"{prefix}down_proj.weight": self.down.weight,
        }
        if self.gate_up.bias is not None:
            tensors[f"{prefix}gate_proj.bias"] = self.gate_up.bias[: self.width]
            tensors[f"{prefix}up_proj.bias"] = self.gate_up.bias[self.width :]
            tensors[f"{prefix}down_proj.bias"] = self.down.bias
        return tensors


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then a feed-forward (dense or a mixture of experts)."""

    def __init__(self, attention: Attention, feed_forward: nn.Module) -> None:
        super().__init__()
        shape = attention.shape
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = RMSNorm(shape.hidden_size, shape.norm_eps)
        self.feed_forward_norm = RMSNorm(shape.hidden_size, shape.norm_eps)

    def forward(
        self, hidden: Float[Tensor, "batch seq hidden"], context: LayerContext
    ) -> Float[Tensor, "batch seq hidden"]:
        hidden = hidden + self.attention(self.attention_norm(hidden), context)
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))  # type: ignore[no-any-return]

    def at(
        self, hidden: Float[Tensor, "batch seq hidden"], context: LayerContext, places: ReadPlaces
    ) -> Float[Tensor, "masked hidden"]:
        """``forward`` at some places, for the last layer: no later layer reads the others."""
        if isinstance(context.pattern, BlockMask):  # its kernel is made for all queries
            return self.forward(hidden, context).flatten(0, 1)[places.index]
        return self.read(hidden, context, places)

    def read(
        self, hidden: Float[Tensor, "batch seq hidden"], context: LayerContext, places: ReadPlaces
    ) -> Float[Tensor, "masked hidden"]:
        """What :meth:`at` computes, apart from what is hooked to that: it may be compiled."""
        mixed = self.attention.at(self.attention_norm(hidden), context, places)
        read = hidden.flatten(0, 1)[places.index] + mixed
        return read + self.feed_forward(self.feed_forward_norm(read)[None])[0]  # type: ignore[no-any-return]

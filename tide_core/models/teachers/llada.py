"""LLaDA (arXiv 2502.09992): a dense decoder with full attention, in its own names of fields and weights.

In: a folder of LLaDA-8B or LLaDA 1.5. Out: a decoder that answers at each token's own position. The shape is
Llama's; what the published configuration class could switch to something else is refused by its field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import LLADA, LLAMA
from tide_core.models.configuration import ConfigT, DecoderConfig
from tide_core.models.decoder import Decoder
from tide_core.models.layers import Attention, AttentionShape, DecoderLayer, GatedFeedForward

_ONLY: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": LLAMA.model_type,
    "include_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "multi_query_attention": False,
    "rope": True,
    "scale_logits": False,
}
"""Switches of the published class, and the one value that is computed here; null and a missing field mean it
too."""
_SILENT = {
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "mlp_ratio",
    "precision",
    "residual_dropout",
    "rope_full_precision",
}


@dataclass(frozen=True, kw_only=True)
class LLaDAConfig(DecoderConfig):
    """Configuration of LLaDA under the usual names; ``from_json`` and ``to_json`` translate from and to its
    own.

    ``vocab_size`` counts the rows of the embedding, which LLaDA calls ``embedding_size``.
    """

    model_type: str = LLADA.model_type
    rms_norm_eps: float = 1e-5
    include_qkv_bias: bool = False

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            has_qk_norm=False,
            has_qkv_bias=self.include_qkv_bias,
            has_output_bias=False,
            norm_eps=self.rms_norm_eps,
        )

    @classmethod
    def from_json(cls: type[ConfigT], payload: dict[str, Any]) -> ConfigT:
        for name, only in _ONLY.items():
            value = payload.get(name)
            if value is not None and value != only:
                raise CheckpointError(f"{name} {value!r} is not supported: LLaDA has {only!r}.", param=name)
        fields = LLADA.standard_fields(payload)
        # LLaDA has no such field: its heads share the width of the hidden states.
        fields.pop("head_dim", None)
        own = {name for _, name in LLADA.own_names}
        return super().from_json(
            {name: value for name, value in fields.items() if name not in (own | set(_ONLY) | _SILENT)}
        )

    def to_json(self) -> dict[str, Any]:
        fields = super().to_json()
        usual = {name for name, _ in LLADA.own_names} | {"head_dim", "hidden_act"}
        own = {name: fields[usual_name] for usual_name, name in LLADA.own_names}
        kept = {name: value for name, value in fields.items() if name not in usual}
        return {**_ONLY, **kept, **own, "vocab_size": self.vocab_size}


class LLaDAModel(Decoder):
    """The model; ``from_pretrained(folder)`` loads the genuine layout, ``forward`` gives hidden states."""

    config_type = LLaDAConfig
    architecture_name = LLADA.architecture
    embedding_key, norm_key, head_key = LLADA.embedding_key, LLADA.norm_key, LLADA.head_key
    config: LLaDAConfig

    def build_layer(self, index: int) -> DecoderLayer:
        config = self.config
        return DecoderLayer(
            Attention(config.attention_shape, index),
            GatedFeedForward(config.hidden_size, config.intermediate_size),
        )

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        assert isinstance(layer.feed_forward, GatedFeedForward)
        prefix = f"model.transformer.blocks.{index}."
        width = layer.feed_forward.width
        return {
            **layer.attention.projection_tensors(prefix, ("q_proj", "k_proj", "v_proj"), "attn_out"),
            f"{prefix}ff_proj.weight": layer.feed_forward.gate_up.weight[:width],
            f"{prefix}up_proj.weight": layer.feed_forward.gate_up.weight[width:],
            f"{prefix}ff_out.weight": layer.feed_forward.down.weight,
            f"{prefix}attn_norm.weight": layer.attention_norm.weight,
            f"{prefix}ff_norm.weight": layer.feed_forward_norm.weight,
        }

"""Dense decoders of the Qwen3, Qwen2 and Llama shapes, and of what others made of them: one model, four
switches.

Which family switches what, and by which field of ``config.json``, stands in the table of families
(:mod:`tide_core.contracts.families`); the weights' names are those of Qwen3 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import (
    EMBEDDING_KEY,
    FAMILIES,
    STUDENT_PREFIX,
    ModelFamily,
    architecture_name,
    find_family,
    is_student_type,
)
from tide_core.models.configuration import ConfigT, DecoderConfig
from tide_core.models.decoder import Decoder
from tide_core.models.layers import Attention, AttentionShape, DecoderLayer, GatedFeedForward

_SWITCH_FIELDS = ("qk_norm", "attention_bias", "output_bias", "mlp_bias")


@dataclass(frozen=True, kw_only=True)
class DenseConfig(DecoderConfig):
    """Configuration of a dense decoder; the switches follow from ``model_type`` when read from a file."""

    qk_norm: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    # Tokens per diffusion block that the model was trained with.
    block_size: int | None = None

    @property
    def family(self) -> ModelFamily:
        """The entry of the family, which a student has in common with the causal model it was made of."""
        return _dense_family(self.model_type)

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            has_qk_norm=self.qk_norm,
            has_qkv_bias=self.attention_bias,
            has_output_bias=self.output_bias,
            norm_eps=self.rms_norm_eps,
        )

    @classmethod
    def from_json(cls: type[ConfigT], payload: dict[str, Any]) -> ConfigT:
        family = _dense_family(payload.get("model_type"))
        block_size = payload.get(family.block_size_field, family.block_size)
        if is_student_type(payload.get("model_type")):
            block_size = payload.get("block_size")
        fields = {name: value for name, value in payload.items() if name != family.block_size_field}
        return super().from_json({**fields, "block_size": block_size, **_family_switches(payload)})

    def to_json(self) -> dict[str, Any]:
        payload = super().to_json()
        for name in set(_SWITCH_FIELDS) - self.family.switches.fields:
            payload.pop(name)
        if "block_size" in payload:
            payload[self.family.block_size_field] = payload.pop("block_size")
        return {**dict.fromkeys(self.family.explicit_fields), **payload}


def _family_switches(payload: dict[str, Any]) -> dict[str, Any]:
    switches = _dense_family(payload.get("model_type")).switches
    return {
        "qk_norm": switches.qk_norm.read(payload),
        "attention_bias": switches.qkv_bias.read(payload),
        "output_bias": switches.output_bias.read(payload),
        "mlp_bias": switches.mlp_bias.read(payload),
    }


def _dense_family(model_type: object) -> ModelFamily:
    family = find_family(model_type)
    if family is None or family.mixture is not None:
        known = ", ".join(family.model_type for family in FAMILIES.values() if family.mixture is None)
        raise CheckpointError(
            f"model_type {model_type!r} is no known dense decoder: {known}, or the student of one of them "
            f"({STUDENT_PREFIX!r} before its name).",
            code="unknown_architecture",
            param="model_type",
        )
    return family


class DenseDecoder(Decoder):
    """A dense decoder; see the module's table for the families."""

    config_type = DenseConfig
    architecture_name = "DenseDecoder"
    embedding_key = EMBEDDING_KEY
    config: DenseConfig

    def build_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config.attention_shape, index)
        return DecoderLayer(
            attention,
            GatedFeedForward(config.hidden_size, config.intermediate_size, has_bias=config.mlp_bias),
        )

    def config_json(self) -> dict[str, Any]:
        return super().config_json() | {"architectures": [architecture_name(self.config.model_type)]}

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        assert isinstance(layer.feed_forward, GatedFeedForward)
        prefix = f"model.layers.{index}."
        return {
            **layer.attention.checkpoint_tensors(f"{prefix}self_attn."),
            **layer.feed_forward.checkpoint_tensors(f"{prefix}mlp."),
            f"{prefix}input_layernorm.weight": layer.attention_norm.weight,
            f"{prefix}post_attention_layernorm.weight": layer.feed_forward_norm.weight,
        }

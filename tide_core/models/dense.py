"""Dense decoders of the Qwen3, Qwen2 and Llama shapes: one model, four switches.

| family | norm of q, k | bias of q, k, v | bias of output | bias of feed-forward |
| --- | --- | --- | --- | --- |
| Qwen3 | yes | ``attention_bias`` | ``attention_bias`` | no |
| Qwen2 | no | yes | no | no |
| Llama | no | ``attention_bias`` | ``attention_bias`` | ``mlp_bias`` |
| WeDLM | ``qk_norm`` | ``attention_bias`` | no | no |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tide_core.contracts.errors import CheckpointError
from tide_core.models.configuration import ConfigT, DecoderConfig
from tide_core.models.decoder import Decoder
from tide_core.models.layers import Attention, AttentionShape, DecoderLayer, GatedFeedForward

# A block-diffusion student made of a causal family carries the family's name behind this prefix, as the dLLM
# tools write it ("A2D": autoregressive to diffusion).
STUDENT_PREFIX = "a2d-"


@dataclass(frozen=True, kw_only=True)
class DenseConfig(DecoderConfig):
    """Configuration of a dense decoder; the switches follow from ``model_type`` when read from a file."""

    qk_norm: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    # Tokens per diffusion block that a student was trained with.
    block_size: int | None = None

    @property
    def family(self) -> str:
        """``qwen3``, ``qwen2``, ``llama`` or ``wedlm``."""
        return self.model_type.removeprefix(STUDENT_PREFIX)

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
        return super().from_json({**payload, **_family_switches(payload)})

    def to_json(self) -> dict[str, Any]:
        payload = super().to_json()
        for name in ("qk_norm", "output_bias", *(() if self.family == "llama" else ("mlp_bias",))):
            if self.family != "wedlm" or name != "qk_norm":
                payload.pop(name)
        if self.family == "qwen2":
            payload.pop("attention_bias")
        if self.family == "llama":
            # Where they are missing, transformers' Llama takes 1 and 2 for them.
            payload = {"bos_token_id": None, "eos_token_id": None, **payload}
        return payload


def _family_switches(payload: dict[str, Any]) -> dict[str, Any]:
    family = str(payload.get("model_type", "")).removeprefix(STUDENT_PREFIX)
    bias = payload.get("attention_bias")
    if family == "qwen3":
        return {"qk_norm": True, "attention_bias": bool(bias), "output_bias": bool(bias), "mlp_bias": False}
    if family == "qwen2":
        return {"qk_norm": False, "attention_bias": True, "output_bias": False, "mlp_bias": False}
    if family == "llama":
        mlp_bias = bool(payload.get("mlp_bias"))
        return {
            "qk_norm": False,
            "attention_bias": bool(bias),
            "output_bias": bool(bias),
            "mlp_bias": mlp_bias,
        }
    if family == "wedlm":
        # The published class's own defaults: the Qwen2.5-based 7B.
        return {
            "qk_norm": bool(payload.get("qk_norm", False)),
            "attention_bias": True if bias is None else bool(bias),
            "output_bias": False,
            "mlp_bias": False,
        }
    raise CheckpointError(
        f"model_type {payload.get('model_type')!r} is no known dense decoder: qwen3, qwen2, llama, wedlm, "
        f"or one of them behind {STUDENT_PREFIX!r}.",
        code="unknown_architecture",
        param="model_type",
    )


class DenseDecoder(Decoder):
    """A dense decoder; see the module's table for the families."""

    config_type = DenseConfig
    architecture_name = "DenseDecoder"
    embedding_key = "model.embed_tokens.weight"
    config: DenseConfig

    def build_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config.attention_shape, index)
        return DecoderLayer(
            attention,
            GatedFeedForward(config.hidden_size, config.intermediate_size, has_bias=config.mlp_bias),
        )

    def config_json(self) -> dict[str, Any]:
        return super().config_json() | {"architectures": [_architecture(self.config.model_type)]}

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        assert isinstance(layer.feed_forward, GatedFeedForward)
        prefix = f"model.layers.{index}."
        return {
            **_attention_tensors(layer.attention, f"{prefix}self_attn."),
            **layer.feed_forward.checkpoint_tensors(f"{prefix}mlp."),
            f"{prefix}input_layernorm.weight": layer.attention_norm.weight,
            f"{prefix}post_attention_layernorm.weight": layer.feed_forward_norm.weight,
        }


def _architecture(model_type: str) -> str:
    family = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama", "wedlm": "WeDLM"}[
        model_type.removeprefix(STUDENT_PREFIX)
    ]
    return f"A2D{family}LMHeadModel" if model_type.startswith(STUDENT_PREFIX) else f"{family}ForCausalLM"


def _attention_tensors(attention: Attention, prefix: str) -> dict[str, Tensor]:
    shape = attention.shape
    widths = (shape.query_width, shape.key_width, shape.key_width)
    names = ("q_proj", "k_proj", "v_proj")
    fused = attention.query_key_value
    tensors = {
        f"{prefix}{name}.weight": part
        for name, part in zip(names, fused.weight.split_with_sizes(widths), strict=True)
    }
    if fused.bias is not None:
        tensors |= {
            f"{prefix}{name}.bias": part
            for name, part in zip(names, fused.bias.split_with_sizes(widths), strict=True)
        }
    tensors[f"{prefix}o_proj.weight"] = attention.output.weight
    if attention.output.bias is not None:
        tensors[f"{prefix}o_proj.bias"] = attention.output.bias
    if attention.query_norm is not None and attention.key_norm is not None:
        tensors[f"{prefix}q_norm.weight"] = attention.query_norm.weight
        tensors[f"{prefix}k_norm.weight"] = attention.key_norm.weight
    return tensors

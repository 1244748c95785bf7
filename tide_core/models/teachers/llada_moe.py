"""LLaDA-MoE (arXiv 2509.24389): full attention, and experts that a softmax chooses.

In: a folder of LLaDA-MoE-7B-A1B. Out: a decoder that answers at each token's own position. The published code
never lets the chosen experts' weights sum to one, whatever ``norm_topk_prob`` says, and neither does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from torch import Tensor

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import LLADA_MOE
from tide_core.models.configuration import ConfigT, DecoderConfig
from tide_core.models.decoder import Decoder
from tide_core.models.layers import Attention, AttentionShape, DecoderLayer, GatedFeedForward
from tide_core.models.mixture import MixtureFeedForward, RoutingRule

logger = structlog.get_logger(__name__)

_ONLY: dict[str, tuple[Any, ...]] = {
    "clip_qkv": (None,),
    "moe_router_enable_expert_bias": (None, False),
    "moe_router_score_function": (None, "softmax"),
    "routed_scaling_factor": (None, 1, 1.0),
}
"""Switches of the published class, and the values that are computed here."""
_SILENT = {"norm_topk_prob", "router_aux_loss_coef", "router_num_group", "router_topk_group"}


@dataclass(frozen=True, kw_only=True)
class LLaDAMoeConfig(DecoderConfig):
    """Configuration of LLaDA-MoE; field names as in the genuine ``config.json``, but for the width of a dense
    layer, ``intermediate_size`` here and ``dense_intermediate_size`` there.

    Attributes:
        expert_intermediate_size: inner width of an expert.
        shared_expert_intermediate_size: of the expert that sees every token; None: there is none.
        moe_layer_freq: for each layer 1, or 0 where its feed-forward is dense.

    Raises (on construction):
        CheckpointError: fields contradict each other.
    """

    model_type: str = LLADA_MOE.model_type
    rms_norm_eps: float = 1e-5
    expert_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    shared_expert_intermediate_size: int | None = None
    moe_layer_freq: list[int]
    qk_layernorm: bool = False
    attention_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.moe_layer_freq) != self.num_hidden_layers:
            raise CheckpointError(
                f"moe_layer_freq names {len(self.moe_layer_freq)} layers, num_hidden_layers "
                f"{self.num_hidden_layers}.",
                param="moe_layer_freq",
            )
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise CheckpointError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, of {self.num_experts} experts.",
                param="num_experts_per_tok",
            )

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            has_qk_norm=self.qk_layernorm,
            has_qkv_bias=self.attention_bias,
            has_output_bias=self.attention_bias,
            norm_eps=self.rms_norm_eps,
        )

    @property
    def routing_rule(self) -> RoutingRule:
        """How a sparse layer chooses experts."""
        return RoutingRule(
            experts=self.num_experts,
            groups=1,
            kept_groups=1,
            chosen=self.num_experts_per_tok,
            scale=1.0,
            is_normalised=False,
            is_softmax=True,
        )

    @classmethod
    def from_json(cls: type[ConfigT], payload: dict[str, Any]) -> ConfigT:
        for name, allowed in _ONLY.items():
            if payload.get(name) not in allowed:
                raise CheckpointError(
                    f"{name} {payload[name]!r} is not supported: LLaDA-MoE has {allowed[-1]!r}.", param=name
                )
        if payload.get("norm_topk_prob"):
            logger.warning(
                "expert_weights_not_normalised",
                field="norm_topk_prob",
                note="config.json says true, and the published code does not do it, nor does Tide",
            )
        fields = LLADA_MOE.standard_fields(payload) | {"model_type": LLADA_MOE.model_type}
        own = {name for _, name in LLADA_MOE.own_names}
        return super().from_json(
            {name: value for name, value in fields.items() if name not in (own | set(_ONLY) | _SILENT)}
        )

    def to_json(self) -> dict[str, Any]:
        fields = super().to_json()
        own = {name: fields.pop(usual) for usual, name in LLADA_MOE.own_names}
        return fields | own


class LLaDAMoeModel(Decoder):
    """The model; ``from_pretrained(folder)`` loads the genuine layout, ``forward`` gives hidden states."""

    config_type = LLaDAMoeConfig
    architecture_name = LLADA_MOE.architecture
    embedding_key = LLADA_MOE.embedding_key
    config: LLaDAMoeConfig

    def build_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config.attention_shape, index)
        if not config.moe_layer_freq[index]:
            return DecoderLayer(attention, GatedFeedForward(config.hidden_size, config.intermediate_size))
        shared = config.shared_expert_intermediate_size or 0
        mixture = MixtureFeedForward(
            config.hidden_size, config.expert_intermediate_size, shared, config.routing_rule
        )
        return DecoderLayer(attention, mixture)

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        prefix = f"model.layers.{index}."
        return {
            **layer.attention.checkpoint_tensors(f"{prefix}self_attn."),
            **_feed_forward_tensors(layer.feed_forward, prefix),
            f"{prefix}input_layernorm.weight": layer.attention_norm.weight,
            f"{prefix}post_attention_layernorm.weight": layer.feed_forward_norm.weight,
        }


def _feed_forward_tensors(feed_forward: object, prefix: str) -> dict[str, Tensor]:
    """The shared expert stands beside the mixture, not in it."""
    if isinstance(feed_forward, GatedFeedForward):
        return feed_forward.checkpoint_tensors(f"{prefix}mlp.")
    assert isinstance(feed_forward, MixtureFeedForward)
    shared = feed_forward.shared
    return {
        **feed_forward.router_tensors(f"{prefix}mlp."),
        **feed_forward.expert_tensors(f"{prefix}mlp."),
        **(shared.checkpoint_tensors(f"{prefix}shared_expert.") if shared is not None else {}),
    }

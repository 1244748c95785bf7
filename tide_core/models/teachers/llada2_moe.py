"""LLaDA2.0 mixture-of-experts diffusion model (arXiv 2512.15745), in the genuine checkpoint's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import structlog
from torch import Tensor

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import LLADA2_MOE
from tide_core.models.configuration import ConfigT, DecoderConfig
from tide_core.models.decoder import Decoder
from tide_core.models.layers import Attention, AttentionShape, DecoderLayer, GatedFeedForward
from tide_core.models.mixture import MixtureFeedForward, RoutingRule

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class LLaDA2MoeConfig(DecoderConfig):
    """Configuration of LLaDA2; field names as in the genuine ``config.json``.

    Attributes:
        num_experts: routed experts of a sparse layer; None: every layer is dense.
        moe_intermediate_size, num_experts_per_tok: needed where there are experts.
        num_shared_experts: experts that see every token; 0 where the file says null.
        norm_topk_prob: whether the chosen experts' weights sum to one.

    Raises (on construction):
        CheckpointError: fields contradict each other, e.g. experts that do not divide into their groups.
    """

    own_type: ClassVar[str] = LLADA2_MOE.model_type

    model_type: str = LLADA2_MOE.model_type
    num_experts: int | None
    moe_intermediate_size: int | None = None
    num_experts_per_tok: int | None = None
    num_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 0
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    use_qk_norm: bool = True
    use_qkv_bias: bool = False
    use_bias: bool = False
    score_function: str = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_type != self.own_type:
            raise CheckpointError(
                f"model_type is {self.model_type!r}, not {self.own_type!r}.",
                code="unknown_architecture",
                param="model_type",
            )
        if self.score_function != "sigmoid":
            raise CheckpointError(
                f"score_function {self.score_function!r} is not supported: LLaDA2 routes by sigmoid.",
                param="score_function",
            )
        if not 0 <= self.first_k_dense_replace <= self.num_hidden_layers:
            raise CheckpointError(
                f"first_k_dense_replace is {self.first_k_dense_replace}, of {self.num_hidden_layers} layers.",
                param="first_k_dense_replace",
            )
        if self.num_experts is not None:
            self._check_experts(self.num_experts)

    def _check_experts(self, experts: int) -> None:
        for name in ("moe_intermediate_size", "num_experts_per_tok"):
            if (getattr(self, name) or 0) < 1:
                raise CheckpointError(
                    f"{name} must be at least 1 where num_experts is {experts}, not {getattr(self, name)}.",
                    param=name,
                )
        if experts < 1 or self.n_group < 1 or experts % self.n_group:
            raise CheckpointError(
                f"{experts} experts do not divide into {self.n_group} groups.", param="n_group"
            )
        if not 1 <= self.topk_group <= self.n_group:
            raise CheckpointError(
                f"topk_group must lie between 1 and n_group = {self.n_group}, not {self.topk_group}.",
                param="topk_group",
            )
        available = self.topk_group * (experts // self.n_group)
        assert self.num_experts_per_tok is not None
        if self.num_experts_per_tok > available:
            raise CheckpointError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, but the kept groups hold {available}.",
                param="num_experts_per_tok",
            )

    @classmethod
    def from_json(cls: type[ConfigT], payload: dict[str, Any]) -> ConfigT:
        # What this family's files may switch to a computation that is not LLaDA2's.
        for name, only in (("norm_head", False), ("moe_router_enable_expert_bias", True)):
            if payload.get(name, only) is not only:
                raise CheckpointError(
                    f"{name} {payload[name]!r} is not supported: LLaDA2 has {str(only).lower()}.", param=name
                )
        if payload.get("num_shared_experts", 1) is None:
            payload = {**payload, "num_shared_experts": 0}
        config = super().from_json(payload)
        if payload.get("num_experts") is not None and payload.get("norm_topk_prob") is False:
            logger.warning(
                "expert_weights_not_normalised",
                field="norm_topk_prob",
                note="config.json says false, and so it is done; other programs normalise them all the same",
            )
        shared, routed = (
            payload.get("moe_shared_expert_intermediate_size"),
            payload.get("moe_intermediate_size"),
        )
        if shared is not None and shared != routed:
            raise CheckpointError(
                f"moe_shared_expert_intermediate_size {shared} differs from moe_intermediate_size {routed}: "
                "shared experts are as wide as the routed ones.",
                param="moe_shared_expert_intermediate_size",
            )
        return config

    def to_json(self) -> dict[str, Any]:
        # A dense model says so: without the field, other programs take a number of experts of their own.
        return super().to_json() | ({"num_experts": None} if self.num_experts is None else {})

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            has_qk_norm=self.use_qk_norm,
            has_qkv_bias=self.use_qkv_bias,
            has_output_bias=self.use_bias,
            norm_eps=self.rms_norm_eps,
        )

    @property
    def routing_rule(self) -> RoutingRule:
        """How a sparse layer chooses experts."""
        assert self.num_experts is not None
        assert self.num_experts_per_tok is not None
        return RoutingRule(
            experts=self.num_experts,
            groups=self.n_group,
            kept_groups=self.topk_group,
            chosen=self.num_experts_per_tok,
            scale=self.routed_scaling_factor,
            is_normalised=self.norm_topk_prob,
        )


class LLaDA2MoeModel(Decoder):
    """The model; ``from_pretrained(folder)`` loads the genuine layout, ``forward`` gives hidden states."""

    config_type = LLaDA2MoeConfig
    architecture_name = LLADA2_MOE.architecture
    embedding_key = LLADA2_MOE.embedding_key
    config: LLaDA2MoeConfig

    def build_layer(self, index: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config.attention_shape, index)
        if config.num_experts is None or index < config.first_k_dense_replace:
            return DecoderLayer(attention, GatedFeedForward(config.hidden_size, config.intermediate_size))
        assert config.moe_intermediate_size is not None
        return DecoderLayer(
            attention,
            MixtureFeedForward(
                config.hidden_size,
                config.moe_intermediate_size,
                config.moe_intermediate_size * config.num_shared_experts,
                config.routing_rule,
            ),
        )

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        layer = self.layers[index]
        assert isinstance(layer, DecoderLayer)
        assert isinstance(layer.feed_forward, GatedFeedForward | MixtureFeedForward)
        prefix = f"model.layers.{index}."
        return {
            **_attention_tensors(layer.attention, f"{prefix}attention."),
            **self.feed_forward_tensors(layer.feed_forward, f"{prefix}mlp."),
            f"{prefix}input_layernorm.weight": layer.attention_norm.weight,
            f"{prefix}post_attention_layernorm.weight": layer.feed_forward_norm.weight,
        }

    def feed_forward_tensors(
        self, feed_forward: GatedFeedForward | MixtureFeedForward, prefix: str
    ) -> dict[str, Tensor]:
        """Views of a layer's feed-forward under the checkpoint's keys."""
        return feed_forward.checkpoint_tensors(prefix)


def _attention_tensors(attention: Attention, prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {
        f"{prefix}query_key_value.weight": attention.query_key_value.weight,
        f"{prefix}dense.weight": attention.output.weight,
    }
    if attention.query_key_value.bias is not None:
        tensors[f"{prefix}query_key_value.bias"] = attention.query_key_value.bias
    if attention.output.bias is not None:
        tensors[f"{prefix}dense.bias"] = attention.output.bias
    if attention.query_norm is not None and attention.key_norm is not None:
        tensors[f"{prefix}query_layernorm.weight"] = attention.query_norm.weight
        tensors[f"{prefix}key_layernorm.weight"] = attention.key_norm.weight
    return tensors

"""What all decoders are configured by, and how it is read from a ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError

from tide_core.contracts.errors import CheckpointError
from tide_core.models.rotary import RotarySettings, parse_rotary, rotary_json

logger = structlog.get_logger(__name__)

# Fields of genuine files that say nothing about the computation done here.
SILENT_FIELDS = frozenset(
    {
        "architectures",
        "attention_dropout",
        "auto_map",
        "dtype",
        "embedding_dropout",
        "hidden_act",
        "is_decoder",
        "layer_types",
        "max_window_layers",
        "model_type",
        "output_dropout",
        "output_hidden_states",
        "output_router_logits",
        "partial_rotary_factor",
        "pretraining_tp",
        "return_dict",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "rotary_dim",
        "router_dtype",
        "sliding_window",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_mrope",
        "use_sliding_window",
        "norm_head",
        "moe_router_enable_expert_bias",
        "moe_shared_expert_intermediate_size",
        "quantization_config",
    }
)


ConfigT = TypeVar("ConfigT", bound="DecoderConfig")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes common to all decoders.

    Raises (on construction):
        CheckpointError: two fields contradict each other; ``param`` names one.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rotary: RotarySettings = field(default_factory=RotarySettings)
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    max_position_embeddings: int = 32768
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise CheckpointError(f"{name} must be at least 1, not {getattr(self, name)}.", param=name)
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_key_value_heads} "
                "key-value heads evenly.",
                param="num_key_value_heads",
            )
        if self.rotated_dim % 2 or not 0 < self.rotated_dim <= self.head_dim:
            raise CheckpointError(
                f"The rotary embedding covers {self.rotated_dim} of {self.head_dim} head dimensions: an even "
                "number between 2 and all of them is needed.",
                param="partial_rotary_factor",
            )
        self._check_token_ids()

    def _check_token_ids(self) -> None:
        for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [] if value is None else [value]:
                # Llama's files name -1 for padding, which means that there is none.
                is_absent = name == "pad_token_id" and token == -1
                if not is_absent and not 0 <= token < self.vocab_size:
                    raise CheckpointError(
                        f"{name} {token} lies outside the vocabulary of {self.vocab_size} (vocab_size).",
                        param=name,
                    )

    @property
    def rotated_dim(self) -> int:
        """Head dimensions that the rotary embedding turns."""
        return int(self.head_dim * self.rotary.partial_factor)

    @classmethod
    def from_json(cls: type[ConfigT], payload: dict[str, Any]) -> ConfigT:
        """The configuration in a ``config.json``'s fields; unknown fields are logged and left.

        Raises:
            CheckpointError: a field is missing, of the wrong type, contradictory, or asks for what is not
            supported.
        """
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in payload.items() if name in known}
        unknown = sorted(set(payload) - known - SILENT_FIELDS)
        if unknown:
            logger.info("config_fields_ignored", model_type=payload.get("model_type"), fields=unknown)
        _refuse_unsupported(payload)
        values["rotary"] = parse_rotary(payload)
        if values.get("num_key_value_heads") is None:
            values["num_key_value_heads"] = payload.get("num_attention_heads")
        if values.get("head_dim") is None:
            values["head_dim"] = _default_head_dim(payload)
        try:
            config = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise CheckpointError(
                "config.json does not describe this architecture. " + "; ".join(problems) + ".",
                param=".".join(map(str, error.errors()[0]["loc"])),
            ) from error
        _refuse_contradictions(payload, config)
        return config

    def to_json(self) -> dict[str, Any]:
        """The fields of a ``config.json``; ``from_json`` reads them back to an equal configuration."""
        payload = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "rotary"}
        payload |= {"hidden_act": "silu", "use_cache": False, **rotary_json(self.rotary)}
        return {name: value for name, value in payload.items() if value is not None}


def _default_head_dim(payload: dict[str, Any]) -> int | None:
    hidden, heads = payload.get("hidden_size"), payload.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return None
    if hidden % heads:
        raise CheckpointError(
            f"hidden_size {hidden} does not divide into {heads} heads, and head_dim is not given.",
            param="head_dim",
        )
    return hidden // heads


def _refuse_contradictions(payload: dict[str, Any], config: DecoderConfig) -> None:
    """Fields that say the same as others, in genuine files, and must not say something else."""
    layer_types = payload.get("layer_types")
    if layer_types is not None and len(layer_types) != config.num_hidden_layers:
        raise CheckpointError(
            f"layer_types names {len(layer_types)} layers, num_hidden_layers {config.num_hidden_layers}.",
            param="layer_types",
        )
    rotary_dim = payload.get("rotary_dim")
    if rotary_dim is not None and rotary_dim != config.rotated_dim:
        raise CheckpointError(
            f"rotary_dim is {rotary_dim}, but partial_rotary_factor {config.rotary.partial_factor:g} of "
            f"head_dim {config.head_dim} is {config.rotated_dim}.",
            param="rotary_dim",
        )


def _refuse_unsupported(payload: dict[str, Any]) -> None:
    if payload.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"hidden_act {payload['hidden_act']!r} is not supported: only silu is.", param="hidden_act"
        )
    layer_types = payload.get("layer_types") or []
    if any(kind != "full_attention" for kind in layer_types) or payload.get("use_sliding_window"):
        raise CheckpointError("Sliding-window attention is not supported.", param="layer_types")
    if payload.get("use_mrope"):
        raise CheckpointError("Rotary positions of several axes are not supported.", param="use_mrope")
    if payload.get("quantization_config") is not None:
        raise CheckpointError(
            "Quantised checkpoints are not supported: use the original weights.", param="quantization_config"
        )

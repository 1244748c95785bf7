"""Sizes of a model, from the fields of its config.json alone: no weights, no torch.

The same switches as :mod:`tide_core.models.dense` and :mod:`tide_core.models.teachers.llada2_moe`; tests hold
the counts against the real modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tide_core.contracts.errors import CheckpointError

STUDENT_PREFIX = "a2d-"
MIXTURE = "llada2_moe"
DENSE_FAMILIES = ("qwen3", "qwen2", "llama", "wedlm")

_QWEN3_0_6B: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
_WEDLM_8B: dict[str, Any] = {
    "model_type": "wedlm",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "qk_norm": True,
    "attention_bias": False,
}
_LLADA2_MINI: dict[str, Any] = {
    "model_type": "llada2_moe",
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "first_k_dense_replace": 1,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 512,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "inclusionAI/LLaDA2.0-mini": _LLADA2_MINI,
    "tencent/WeDLM-8B": _WEDLM_8B,
    "tencent/WeDLM-8B-Instruct": _WEDLM_8B,
    "Qwen/Qwen3-0.6B": _QWEN3_0_6B,
}
"""Published sizes by hub name: what a plan needs of a model that is not on the server yet."""


@dataclass(frozen=True)
class Mixture:
    """The experts of a sparse layer.

    Attributes:
        experts: routed experts of a layer.
        chosen: of those, how many a token takes.
        width: inner width of an expert.
        shared_width: inner width of the experts that see every token, together.
        dense_layers: leading layers with a dense feed-forward.
    """

    experts: int
    chosen: int
    width: int
    shared_width: int
    dense_layers: int

    def expected_experts(self, tokens: float) -> float:
        """Experts of a layer that have a token, when tokens choose evenly: ``E (1 - (1 - k/E)^tokens)``."""
        return float(self.experts * (1.0 - (1.0 - self.chosen / self.experts) ** tokens))


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder: embedding, pre-norm layers of attention and feed-forward, final norm, LM head."""

    model_type: str
    vocab: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    is_tied: bool
    has_qk_norm: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    mixture: Mixture | None = None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def dense_layers(self) -> int:
        """Layers whose feed-forward is dense."""
        return self.layers if self.mixture is None else min(self.layers, self.mixture.dense_layers)

    @property
    def sparse_layers(self) -> int:
        """Layers whose feed-forward is a mixture of experts."""
        return self.layers - self.dense_layers

    @property
    def attention_matrix(self) -> int:
        """Weights of a layer's attention projections."""
        return self.hidden * (2 * self.query_width + 2 * self.key_width)

    @property
    def dense_matrix(self) -> int:
        """Weights of a dense feed-forward."""
        return 3 * self.hidden * self.feed_forward

    def sparse_matrix(self, experts: float) -> float:
        """Weights of a sparse feed-forward with so many routed experts: router, experts, shared ones."""
        if self.mixture is None:
            return 0.0
        one = 3 * self.hidden * self.mixture.width
        shared = 3 * self.hidden * self.mixture.shared_width
        return self.mixture.experts * self.hidden + experts * one + shared

    def layer_matrices(self, experts: float) -> float:
        """Matrix weights of all layers, with so many routed experts in each sparse one."""
        dense = self.layers * self.attention_matrix + self.dense_layers * self.dense_matrix
        return dense + self.sparse_layers * self.sparse_matrix(experts)

    @property
    def quantisable(self) -> int:
        """Weights that a quantised teacher holds in few bits: the layers' matrices but their routers."""
        experts = self.mixture.experts if self.mixture is not None else 0
        return int(self.layer_matrices(experts) - self.sparse_layers * experts * self.hidden)

    @property
    def head(self) -> int:
        """Weights of the LM head."""
        return self.vocab * self.hidden

    @property
    def vectors(self) -> int:
        """Norms, biases and the experts' selection biases."""
        layer = 2 * self.hidden + (2 * self.head_dim if self.has_qk_norm else 0)
        layer += self.query_width + 2 * self.key_width if self.has_qkv_bias else 0
        layer += self.hidden if self.has_output_bias else 0
        bias = 2 * self.feed_forward + self.hidden if self.has_mlp_bias else 0
        routed = self.mixture.experts if self.mixture is not None else 0
        return self.layers * layer + self.dense_layers * bias + self.sparse_layers * routed + self.hidden

    @property
    def parameters(self) -> int:
        """All numbers in the weights, tied ones once."""
        experts = self.mixture.experts if self.mixture is not None else 0
        tables = self.head if self.is_tied else 2 * self.head
        return int(tables + self.layer_matrices(experts) + self.vectors)

    @property
    def active_parameters(self) -> int:
        """Numbers that a token is multiplied by: layers with its own experts, and the LM head."""
        chosen = self.mixture.chosen if self.mixture is not None else 0
        return int(self.head + self.layer_matrices(chosen) + self.vectors)


def model_shape(config: Mapping[str, Any], param: str) -> ModelShape:
    """The sizes that a config.json describes.

    Args:
        config: its fields.
        param: path of the model in the request, for errors.

    Raises:
        CheckpointError: ``unknown_architecture``, or ``bad_checkpoint`` when a size is missing or no size.
    """
    family = str(config.get("model_type", "")).removeprefix(STUDENT_PREFIX)
    if family not in (*DENSE_FAMILIES, MIXTURE):
        raise CheckpointError(
            f"The planner does not know the architecture {config.get('model_type')!r}; it knows "
            f"{', '.join((*DENSE_FAMILIES, MIXTURE))}.",
            code="unknown_architecture",
            param=param,
        )
    sizes = _Sizes(config, param)
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    return ModelShape(
        model_type=str(config["model_type"]),
        vocab=sizes["vocab_size"],
        hidden=hidden,
        feed_forward=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=sizes.get("num_key_value_heads", heads),
        head_dim=sizes.get("head_dim", max(1, hidden // heads)),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        mixture=_mixture(sizes) if family == MIXTURE else None,
        **_switches(family, config),
    )


class _Sizes:
    """Positive integers of a config, by name."""

    def __init__(self, config: Mapping[str, Any], param: str) -> None:
        self._config = config
        self._param = param

    def __getitem__(self, name: str) -> int:
        return self._checked(name, self._config.get(name), 1)

    def get(self, name: str, default: int, least: int = 1) -> int:
        value = self._config.get(name)
        return default if value is None else self._checked(name, value, least)

    def _checked(self, name: str, value: Any, least: int) -> int:
        # Above any real size: a product of two wild ones would leave the range of JSON's numbers.
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**24:
            raise CheckpointError(
                f"The config of {self._param} needs {name!r}, a whole number between {least} and 2^24, and "
                f"has {value!r}.",
                param=self._param,
            )
        return value


def _mixture(sizes: _Sizes) -> Mixture:
    width = sizes["moe_intermediate_size"]
    experts, chosen = sizes["num_experts"], sizes["num_experts_per_tok"]
    return Mixture(
        experts=experts,
        chosen=min(experts, chosen),
        width=width,
        shared_width=width * sizes.get("num_shared_experts", 1, least=0),
        dense_layers=sizes.get("first_k_dense_replace", 0, least=0),
    )


def _switches(family: str, config: Mapping[str, Any]) -> dict[str, bool]:
    bias = config.get("attention_bias")
    has_bias = bool(bias)
    match family:
        case "qwen3":
            found = (True, has_bias, has_bias, False)
        case "qwen2":
            found = (False, True, False, False)
        case "llama":
            found = (False, has_bias, has_bias, bool(config.get("mlp_bias")))
        case "wedlm":
            found = (bool(config.get("qk_norm", False)), True if bias is None else has_bias, False, False)
        case _:
            found = (
                bool(config.get("use_qk_norm", True)),
                bool(config.get("use_qkv_bias", False)),
                bool(config.get("use_bias", False)),
                False,
            )
    names = ("has_qk_norm", "has_qkv_bias", "has_output_bias", "has_mlp_bias")
    return dict(zip(names, found, strict=True))

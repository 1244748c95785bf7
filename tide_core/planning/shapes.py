"""Sizes of a model, from the fields of its config.json alone: no weights, no torch.

Switches and fields are those of the table of families; tests hold the counts against the real modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tide_core.contracts.errors import CheckpointError
from tide_core.contracts.families import FAMILIES, MixtureFields, ModelFamily, find_family, read_model_type


@dataclass(frozen=True)
class Mixture:
    """The experts of a sparse layer.

    Attributes:
        experts: routed experts of a layer.
        chosen: of those, how many a token takes.
        width: inner width of an expert.
        shared_width: inner width of the experts that see every token, together.
        dense_layers: layers with a dense feed-forward.
        has_selection_bias: the choice of experts is biased, by one number an expert.
    """

    experts: int
    chosen: int
    width: int
    shared_width: int
    dense_layers: int
    has_selection_bias: bool = True

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
    def selection_biases(self) -> int:
        """Numbers that bias the choice of experts, of all layers; they are held in float32."""
        if self.mixture is None or not self.mixture.has_selection_bias:
            return 0
        return self.sparse_layers * self.mixture.experts

    @property
    def vectors(self) -> int:
        """Norms, biases and the experts' selection biases."""
        layer = 2 * self.hidden + (2 * self.head_dim if self.has_qk_norm else 0)
        layer += self.query_width + 2 * self.key_width if self.has_qkv_bias else 0
        layer += self.hidden if self.has_output_bias else 0
        bias = 2 * self.feed_forward + self.hidden if self.has_mlp_bias else 0
        return self.layers * layer + self.dense_layers * bias + self.selection_biases + self.hidden

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
    family = find_family(read_model_type(config))
    if family is None:
        raise CheckpointError(
            f"The planner does not know the architecture {config.get('model_type')!r}; it knows "
            f"{', '.join(FAMILIES)}.",
            code="unknown_architecture",
            param=param,
        )
    config = family.standard_fields(config)
    sizes = _ConfigSizes(config, param)
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    return ModelShape(
        model_type=read_model_type(config),
        vocab=sizes["vocab_size"],
        hidden=hidden,
        feed_forward=sizes["intermediate_size"],
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=sizes.get("num_key_value_heads", heads),
        head_dim=sizes.get("head_dim", max(1, hidden // heads)),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        mixture=_mixture(sizes, family.mixture) if family.mixture is not None else None,
        **_switches(family, config),
    )


class _ConfigSizes:
    """Positive integers of a config, by name."""

    def __init__(self, config: Mapping[str, Any], param: str) -> None:
        self._config = config
        self._param = param

    def __getitem__(self, name: str) -> int:
        return self._check(name, self._config.get(name), 1)

    def is_null(self, name: str) -> bool:
        """Whether the config names the field and gives it no number."""
        return name in self._config and self._config[name] is None

    def read_pattern(self, name: str) -> list[int]:
        """A number for each layer."""
        pattern = self._config.get(name)
        if not isinstance(pattern, list) or len(pattern) != self["num_hidden_layers"]:
            raise CheckpointError(
                f"The config of {self._param} needs {name!r}, a number for each of its layers, and has "
                f"{pattern!r}.",
                param=self._param,
            )
        return pattern

    def get(self, name: str, default: int, least: int = 1) -> int:
        value = self._config.get(name)
        return default if value is None else self._check(name, value, least)

    def _check(self, name: str, value: Any, least: int) -> int:
        # Above any real size: a product of two wild ones would leave the range of JSON's numbers.
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**24:
            raise CheckpointError(
                f"The config of {self._param} needs {name!r}, a whole number between {least} and 2^24, and "
                f"has {value!r}.",
                param=self._param,
            )
        return value


def _mixture(sizes: _ConfigSizes, fields: MixtureFields) -> Mixture | None:
    """The experts; None where the file says null for their number: every layer is dense."""
    if sizes.is_null(fields.experts):
        return None
    width = sizes[fields.width]
    experts, chosen = sizes[fields.experts], sizes[fields.chosen]
    return Mixture(
        experts=experts,
        chosen=min(experts, chosen),
        width=width,
        shared_width=_shared_width(sizes, fields, width),
        dense_layers=_dense_layers(sizes, fields),
        has_selection_bias=fields.has_selection_bias,
    )


def _shared_width(sizes: _ConfigSizes, fields: MixtureFields, width: int) -> int:
    if fields.shared_width:
        return sizes.get(fields.shared_width, 0)
    return width * (0 if sizes.is_null(fields.shared) else sizes.get(fields.shared, 1, least=0))


def _dense_layers(sizes: _ConfigSizes, fields: MixtureFields) -> int:
    if fields.layer_pattern:
        return sizes.read_pattern(fields.layer_pattern).count(0)
    return sizes.get(fields.dense_layers, 0, least=0)


def _switches(family: ModelFamily, config: Mapping[str, Any]) -> dict[str, bool]:
    switches = family.switches
    return {
        "has_qk_norm": switches.qk_norm.read(config),
        "has_qkv_bias": switches.qkv_bias.read(config),
        "has_output_bias": switches.output_bias.read(config),
        "has_mlp_bias": switches.mlp_bias.read(config),
    }

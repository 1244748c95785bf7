"""The decoder that every student and teacher here is: embedding, pre-norm layers, final norm, LM head.

Which positions may see each other is the caller's affair: a forward takes any boolean mask and explicit
position ids, so the same weights serve bidirectionally, causally, or under a block pattern.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from tide_core.checkpoints.headers import CONFIG_NAME, read_config, read_headers
from tide_core.checkpoints.special_tokens import find_mask_token
from tide_core.contracts.errors import CheckpointError, InvalidInputError, ShapeError
from tide_core.contracts.families import HEAD_KEY, NORM_KEY, find_family
from tide_core.contracts.job import Quantisation
from tide_core.models.cache import KeyValueCache
from tide_core.models.configuration import DecoderConfig
from tide_core.models.layers import AttentionPattern, DecoderLayer, LayerContext, RMSNorm, as_bias
from tide_core.models.loading import (
    DEFAULT_SHARD_BYTES,
    check_tied_head,
    check_weights,
    copy_weights,
    save_sharded,
    stored_dtype,
)
from tide_core.models.quantisation import quantise_layer
from tide_core.models.reading import ReadPlaces
from tide_core.models.rotary import rotary_tables
from tide_core.models.shifting import shift_places, shift_states

AttentionMask = (
    Bool[Tensor, "batch key"]
    | Bool[Tensor, "#batch query key"]
    | Bool[Tensor, "#batch 1 query key"]
    | BlockMask
)

# Not ``Self``, which the tests' shape checks cannot resolve in a class that is checked method by method.
DecoderT = TypeVar("DecoderT", bound="Decoder")


class _Begun(NamedTuple):
    """What a forward starts with.

    Attributes:
        hidden: embeddings, [batch, seq, hidden].
        context: what all layers share.
        mask: which keys a query may see, booleans or a block mask; None: all.
        positions: rotary positions, [batch, seq].
    """

    hidden: Tensor
    context: LayerContext
    mask: Tensor | BlockMask | None
    positions: Tensor


class Decoder(nn.Module):
    """Base of all models. Subclasses name their configuration, their layers and their checkpoint keys.

    Attributes:
        config: sizes and token ids.
        lm_head: linear map from hidden states to logits, ``weight`` of shape [vocab, hidden]; its weight is
            the embedding's where the configuration ties them.
        activation_checkpointing: recompute each layer in the backward pass instead of keeping its
            activations.
        quantisation: how the layers' weights are held; ``none`` unless loaded otherwise.
    """

    config_type: ClassVar[type[DecoderConfig]]
    architecture_name: ClassVar[str]
    embedding_key: ClassVar[str]
    norm_key: ClassVar[str] = NORM_KEY
    head_key: ClassVar[str] = HEAD_KEY

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.build_layer(index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.activation_checkpointing = False
        self.quantisation: Quantisation = "none"
        self._tie()

    @abstractmethod
    def build_layer(self, index: int) -> DecoderLayer:
        """The layer at an index."""

    @abstractmethod
    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """Views of one layer's weights under the genuine checkpoint's keys."""

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Views of all weights under the genuine checkpoint's keys; writing to a view writes the
        parameter.

        Raises:
            InvalidInputError: the model is quantised: the weights of the checkpoint are gone.
        """
        if self.quantisation != "none":
            raise InvalidInputError(
                f"This model holds its weights as {self.quantisation}: load it without quantisation to read, "
                "save or convert them.",
                param="quantisation",
            )
        tensors = self.head_tensors()
        for index in range(len(self.layers)):
            tensors |= self.layer_tensors(index)
        return tensors

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def is_shifted(self) -> bool:
        """Whether the weights predict the next token; what the decoder gives is at the token's own
        position."""
        family = find_family(self.config.model_type)
        return family is not None and family.is_shifted

    @property
    def mask_token_id(self) -> int:
        """The id of the mask token.

        Raises:
            InvalidInputError: the model folder names none.
        """
        if self.config.mask_token_id is None:
            raise InvalidInputError(
                "This model has no mask token: convert it with add_mask_token, or name mask_token_id in "
                "config.json.",
                code="tokenizer_without_mask_token",
                param="mask_token_id",
            )
        return self.config.mask_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text; empty when the configuration names none."""
        ids = self.config.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: AttentionMask | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Hidden states after the final norm, each where the token stands that it is about.

        Args:
            input_ids: token ids.
            attention_mask: True where a query may attend to a key: ``[batch, key]`` for padding, ``[batch,
                query, key]`` or ``[batch, 1, query, key]`` for any pattern, a FlexAttention ``BlockMask``, or
                None when every position sees every other. A query without a key is let see every key: its
                output means nothing, but it is finite, where a softmax over nothing would not be.
            position_ids: rotary positions. By default the count of real tokens before each one under a
                ``[batch, key]`` mask, and 0, 1, 2 ... (behind the cache's prefix) otherwise.
            cache: keys and values of a prefix; keys are then the prefix's positions followed by ``seq``.
                Without gradients only.

        Raises:
            ShapeError: the mask or the positions do not fit the ids.
            InvalidInputError: an id outside the vocabulary. Looked for on the CPU alone, not in a compiled
                graph: elsewhere the look would hold up the stream, and who puts ids there checks them.
        """
        begun = self._begin(input_ids, attention_mask, position_ids, cache)
        hidden = begun.hidden
        for layer in self.layers:
            hidden = self._through(layer, hidden, begun.context)
        states: Tensor = self.norm(hidden)
        if not self.is_shifted:
            return states
        positions = begun.positions
        if cache is not None:
            states, positions = cache.write_states(states, positions)
        return shift_states(states, begun.mask, positions, input_ids.shape[1])

    def forward_at(
        self,
        input_ids: Int[Tensor, "batch seq"],
        places: ReadPlaces,
        attention_mask: AttentionMask | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "masked hidden"]:
        """``forward(...).flatten(0, 1)[places.index]``, without the last layer's work for the other places.

        Args:
            places: what is read of the flattened ``[batch * seq]``, in any order.
            input_ids, attention_mask, position_ids: as in :meth:`forward`.

        Raises:
            ShapeError, InvalidInputError: as :meth:`forward`.
        """
        begun = self._begin(input_ids, attention_mask, position_ids, None)
        hidden, context = begun.hidden, begun.context
        if self.is_shifted:
            places = shift_places(places, begun.mask, begun.positions)
        *before, last = self.layers
        for layer in before:
            hidden = self._through(layer, hidden, context)
        assert isinstance(last, DecoderLayer)
        if self.activation_checkpointing and torch.is_grad_enabled():
            read = checkpoint(last.at, hidden, context, places, use_reentrant=False)
        else:
            read = last.at(hidden, context, places)
        return self.norm(read)  # type: ignore[no-any-return]

    @torch.no_grad()
    def hidden_states(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: AttentionMask | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """``forward`` without gradients: what a teacher offers."""
        return self(input_ids, attention_mask, position_ids)  # type: ignore[no-any-return]

    @torch.no_grad()
    def hidden_at(
        self,
        input_ids: Int[Tensor, "batch seq"],
        places: ReadPlaces,
        attention_mask: AttentionMask | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "masked hidden"]:
        """``forward_at`` without gradients: what a teacher's engine asks for."""
        return self.forward_at(input_ids, places, attention_mask, position_ids)

    def _begin(
        self,
        input_ids: Tensor,
        attention_mask: AttentionMask | None,
        position_ids: Tensor | None,
        cache: KeyValueCache | None,
    ) -> _Begun:
        """Embeddings, and what all layers share."""
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_ids(input_ids, self.vocab_size)
        prefix = cache.length if cache is not None else 0
        pattern = _attention_pattern(attention_mask, input_ids, prefix)
        if position_ids is None:
            position_ids = _default_positions(input_ids, attention_mask, prefix)
        _check_positions(position_ids, input_ids)
        hidden: Tensor = self.embedding(input_ids)
        width = torch.promote_types(hidden.dtype, torch.float32)
        cosines, sines = rotary_tables(position_ids, self.config.rotary, self.config.rotated_dim, width)
        bias = as_bias(pattern, hidden)
        context = LayerContext(cosines.to(hidden.dtype), sines.to(hidden.dtype), bias, cache)
        return _Begun(hidden, context, pattern, position_ids)

    def _through(self, layer: nn.Module, hidden: Tensor, context: LayerContext) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, hidden, context, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(hidden, context)  # type: ignore[no-any-return]

    @classmethod
    def from_config(
        cls: type[DecoderT],
        config: DecoderConfig | Mapping[str, Any],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> DecoderT:
        """A model with fresh weights: normal with ``initializer_range``, norms 1, biases 0.

        The draws depend on the seed and the configuration alone; they are made in float32 on the CPU, in the
        order of the checkpoint's keys.
        """
        model = cls._empty(cls._as_config(config), dtype, device)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in model.checkpoint_tensors().items():
                if tensor.ndim == 1:
                    tensor.fill_(1.0 if key == cls.norm_key or key.endswith("norm.weight") else 0.0)
                else:
                    values = torch.empty(tensor.shape, dtype=torch.float32)
                    tensor.copy_(values.normal_(0.0, model.config.initializer_range, generator=generator))
        return model

    @classmethod
    def from_pretrained(
        cls: type[DecoderT],
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        quantisation: Quantisation = "none",
    ) -> DecoderT:
        """A model from a folder with ``config.json`` and safetensors, in evaluation mode.

        Layer after layer is read, and quantised where that is asked: the weights are never held twice, and of
        a quantised model no more than one layer in full precision.

        Args:
            folder: a model folder in the Hugging Face layout.
            dtype: of the weights in memory; without it, as stored.
            device: where the weights go.
            quantisation: how the layers' weights are held (see ``quantisation.py``); such a model can only
                be asked, not trained or saved.

        Raises:
            CheckpointError: the folder is incomplete, of another architecture, or its weights do not fit.
            TokenizerError: the tokenizer beside it contradicts ``config.json`` about the mask token.
            InvalidInputError: an unknown quantisation.
            NonFiniteError: a weight to be quantised holds a NaN or an infinity.
        """
        config = _with_mask_token(cls._as_config(read_config(folder)), folder)
        headers = read_headers(folder)
        with torch.device("meta"):
            model = cls(config)
        model.to(dtype or stored_dtype(headers))
        check_weights(model.checkpoint_tensors(), headers)
        if config.tie_word_embeddings:
            check_tied_head(headers, cls.embedding_key)
        for part in (model.embedding, model.norm, *(() if config.tie_word_embeddings else (model.lm_head,))):
            part.to_empty(device=device)
        model._tie()
        copy_weights(model.head_tensors(), headers)
        for index, layer in enumerate(model.layers):
            layer.to_empty(device=device)
            copy_weights(model.layer_tensors(index), headers)
            if quantisation != "none":
                quantise_layer(layer, quantisation, f"model.layers.{index}")
        model.quantisation = quantisation
        return model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_bytes: int = DEFAULT_SHARD_BYTES
    ) -> None:
        """Write ``config.json`` and safetensors in the genuine layout."""
        path = Path(folder)
        save_sharded(self.checkpoint_tensors(), path, max_shard_bytes)
        payload = self.config_json()
        (path / CONFIG_NAME).write_text(
            json.dumps(payload, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )

    def config_json(self) -> dict[str, Any]:
        """The fields of ``config.json``, dtype and architecture name included."""
        dtype = str(self.dtype).removeprefix("torch.")
        return self.config.to_json() | {"architectures": [self.architecture_name], "torch_dtype": dtype}

    def head_tensors(self) -> dict[str, Tensor]:
        """Embedding, final norm and head (unless tied) by their keys."""
        tensors: dict[str, Tensor] = {
            self.embedding_key: self.embedding.weight,
            self.norm_key: self.norm.weight,
        }
        if not self.config.tie_word_embeddings:
            tensors[self.head_key] = self.lm_head.weight
        return tensors

    @classmethod
    def _as_config(cls, config: DecoderConfig | Mapping[str, Any]) -> DecoderConfig:
        if isinstance(config, cls.config_type):
            return config
        if isinstance(config, DecoderConfig):
            raise CheckpointError(
                f"{cls.__name__} takes a {cls.config_type.__name__}, not a {type(config).__name__}.",
                param="config",
            )
        return cls.config_type.from_json(dict(config))

    @classmethod
    def _empty(
        cls: type[DecoderT], config: DecoderConfig, dtype: torch.dtype, device: str | torch.device
    ) -> DecoderT:
        # Built without storage first: nothing is initialised twice, and the full-precision copy never exists.
        with torch.device("meta"):
            model = cls(config)
        model = model.to(dtype).to_empty(device=device)
        model._tie()
        return model

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight


def _with_mask_token(config: DecoderConfig, folder: str | os.PathLike[str]) -> DecoderConfig:
    token = find_mask_token(folder)
    return config if token is None else replace(config, mask_token_id=token.id)


def _default_positions(
    input_ids: Int[Tensor, "batch seq"], mask: AttentionMask | None, prefix: int
) -> Int[Tensor, "batch seq"]:
    batch, seq = input_ids.shape
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -seq:]
    return torch.arange(prefix, prefix + seq, device=input_ids.device).expand(batch, seq)


def _check_ids(input_ids: Int[Tensor, "batch seq"], vocab_size: int) -> None:
    if not input_ids.numel():
        return
    lowest, highest = (int(bound) for bound in input_ids.aminmax())
    if lowest < 0 or highest >= vocab_size:
        raise InvalidInputError(
            f"input_ids holds {lowest if lowest < 0 else highest}, outside the vocabulary of {vocab_size}: "
            "use the model's own tokenizer.",
            param="input_ids",
        )


def _check_positions(position_ids: Int[Tensor, "..."], input_ids: Int[Tensor, "batch seq"]) -> None:
    if position_ids.shape != input_ids.shape:
        raise ShapeError(
            f"position_ids is {list(position_ids.shape)}, input_ids {list(input_ids.shape)}.",
            param="position_ids",
        )


def _attention_pattern(
    mask: AttentionMask | None, input_ids: Int[Tensor, "batch seq"], prefix: int
) -> AttentionPattern:
    if mask is None or isinstance(mask, BlockMask):
        return mask
    batch, query = input_ids.shape
    key = prefix + query
    # A pattern may be the same for all rows; padding has a row each.
    rows = {batch} if mask.ndim == 2 else {1, batch}
    expected = {2: (key,), 3: (query, key), 4: (1, query, key)}.get(mask.ndim)
    if mask.dtype != torch.bool or tuple(mask.shape[1:]) != expected or mask.shape[0] not in rows:
        raise ShapeError(
            f"attention_mask is {mask.dtype} {list(mask.shape)}: it must be bool of shape [{batch}, {key}], "
            f"[{batch}, {query}, {key}] or [{batch}, 1, {query}, {key}].",
            param="attention_mask",
        )
    if mask.ndim == 2:
        pattern = mask[:, None, None, :].expand(-1, -1, query, -1)
    else:
        pattern = mask if mask.ndim == 4 else mask[:, None]
    return pattern | ~pattern.any(-1, keepdim=True)

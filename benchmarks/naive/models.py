"""The models of the naive arm, on the same weights: ``transformers`` where it has the architecture.

The released trainer holds student and dense teacher as ``transformers`` models; LLaDA2, which is not among
them, comes with its own code, whose mixture walks over the experts in Python.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tide_core.models.decoder import Decoder
from tide_core.models.dense import DenseConfig
from tide_core.models.layers import DecoderLayer
from tide_core.models.mixture import Experts, MixtureFeedForward


def transformers_model(model: Decoder) -> nn.Module:
    """A ``Qwen3ForCausalLM`` with a copy of the weights of a student or a dense teacher."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = model.config
    assert isinstance(config, DenseConfig)
    assert config.qk_norm
    assert not config.attention_bias
    settings = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary.theta},
        tie_word_embeddings=config.tie_word_embeddings,
        attn_implementation="sdpa",
    )
    with torch.device(model.device):
        twin: nn.Module = Qwen3ForCausalLM(settings).to(model.dtype)
    own = dict(twin.named_parameters())
    with torch.no_grad():
        for key, tensor in model.checkpoint_tensors().items():
            own[key].copy_(tensor)
    return twin


class LoopedExperts(nn.Module):
    """Experts as modules of their own, visited one after the other, as LLaDA2's published code does."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        width = experts.width
        self.gates = [gate_up[:width] for gate_up in experts.gate_up]
        self.ups = [gate_up[width:] for gate_up in experts.gate_up]
        self.downs = list(experts.down)

    def forward(self, tokens: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        """Weighted sum of each token's experts; arguments as of :class:`Experts`."""
        chosen = experts.shape[1]
        counts = experts.new_zeros(len(tokens), len(self.gates)).scatter_(1, experts, 1).sum(0)
        order = experts.flatten().argsort()
        rows = tokens[order // chosen]
        outputs, start = [], 0
        for number, count in enumerate(counts.cpu().tolist()):
            if not count:
                continue
            part = rows[start : start + count]
            start += count
            inner = functional.silu(part @ self.gates[number].T) * (part @ self.ups[number].T)
            outputs.append(inner @ self.downs[number].T)
        sorted_outputs = torch.cat(outputs)
        unsorted = torch.empty_like(sorted_outputs)
        unsorted[order] = sorted_outputs
        per_token = unsorted.view(len(tokens), chosen, -1)
        return (per_token.to(weights.dtype) * weights[..., None]).sum(1).to(tokens.dtype)


def with_expert_loop(model: Decoder) -> Decoder:
    """The same mixture teacher with every layer's experts in a Python loop; weights are shared views."""
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer)
        if isinstance(layer.feed_forward, MixtureFeedForward):
            looped: Any = LoopedExperts(layer.feed_forward.experts)
            layer.feed_forward.experts = looped
    return model

"""Tiny teachers with random weights in the genuine layouts: the fakes that ship, for tests and dry runs.

Their tokenizer has one token a byte, so any text can be put to them; their weights are drawn from a seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tide_core.contracts.families import (
    FAST_DLLM_V2,
    LLADA2_MOE,
    LLADA2_VEOMNI,
    LLADA_MOE,
    SDAR,
    WEDLM,
)
from tide_core.models.decoder import Decoder
from tide_core.models.registry import model_class

MASK_TOKEN, END_TOKEN = "<|mask|>", "<|endoftext|>"
END_ID, MASK_ID = 256, 257
VOCAB_SIZE = 264
"""256 bytes, two special tokens, and rows that no token uses, as genuine checkpoints have."""

_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
_SHARED_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    # Large enough that the answers of random weights are far from flat.
    "initializer_range": 0.3,
    "mask_token_id": MASK_ID,
    "eos_token_id": END_ID,
}
_LLADA2: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "partial_rotary_factor": 0.5,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    LLADA2_MOE.model_type: _LLADA2,
    LLADA2_VEOMNI.model_type: _LLADA2,
    LLADA_MOE.model_type: {
        "expert_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 24,
        "moe_layer_freq": [0, 1],
        "qk_layernorm": True,
    },
    WEDLM.model_type: {"qk_norm": True, "attention_bias": False},
    SDAR.model_type: {"block_size": 4},
    FAST_DLLM_V2.model_type: {"bd_size": 8, "tie_word_embeddings": True},
}


def tiny_teacher(architecture: str, *, seed: int = 0) -> Decoder:
    """A frozen model of some 40,000 parameters.

    Args:
        architecture: ``model_type`` of a family.
        seed: of the weights.
    """
    config = {"model_type": architecture} | _SHARED_SIZES | _OWN_SIZES.get(architecture, {})
    return model_class(architecture).from_config(config, seed=seed).eval().requires_grad_(False)


def write_tiny_teacher(folder: Path, architecture: str, *, seed: int = 0) -> Path:
    """The same as a model folder in the Hugging Face layout, tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_teacher(architecture, seed=seed).save_pretrained(folder)
    _write_byte_tokenizer(folder)
    return folder


def _write_byte_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: rank for rank, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (END_TOKEN, MASK_TOKEN)]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "mask_token": MASK_TOKEN,
        "eos_token": END_TOKEN,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

"""Configurations of the demo's students and teachers, as their `config.json` states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from tide_core.contracts.families import LLADA2_MOE
from workers.demo.vocabularies import VocabularyPlan

BLOCK_SIZE = 8
"""Tokens a diffusion block: answers of three to thirty tokens then span one to four blocks."""
MAX_LENGTH = 64
"""Longest conversation in tokens, on either side."""

# Wider than the usual 0.02: right for matrices of 128 inputs.
_INITIALIZER_RANGE = 0.06


@dataclass(frozen=True)
class DenseSize:
    """Layers and feed-forward width of a dense model of hidden size 128."""

    layers: int
    feed_forward: int


STUDENT_SIZE = DenseSize(layers=4, feed_forward=384)
DENSE_TEACHER_SIZE = DenseSize(layers=6, feed_forward=384)


def dense_config(
    model_type: str, size: DenseSize, tokenizer: Tokenizer, plan: VocabularyPlan, *, is_tied: bool
) -> dict[str, Any]:
    """A model of the Qwen3 shape: hidden 128, 4 heads of 32, 2 key-value heads.

    Args:
        model_type: of a student, or of the dense teacher.
        size: layers and feed-forward width.
        tokenizer, plan: name the vocabulary and its special tokens.
        is_tied: whether the LM head is the embedding.
    """
    return {
        "model_type": model_type,
        "attention_bias": False,
        "qk_norm": True,
        "intermediate_size": size.feed_forward,
        "num_hidden_layers": size.layers,
        "head_dim": 32,
        "rope_theta": 10000.0,
        "tie_word_embeddings": is_tied,
        **_common(tokenizer, plan),
    }


def moe_config(tokenizer: Tokenizer, plan: VocabularyPlan) -> dict[str, Any]:
    """A model of the LLaDA2 shape: layer 0 dense, four sparse layers of 8 experts in 4 groups, 2 a token."""
    return {
        "model_type": LLADA2_MOE.model_type,
        "intermediate_size": 384,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 5,
        "first_k_dense_replace": 1,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_bias": False,
        "head_dim": 32,
        "partial_rotary_factor": 0.5,
        "rope_theta": 600000.0,
        "tie_word_embeddings": False,
        **_common(tokenizer, plan),
    }


def _common(tokenizer: Tokenizer, plan: VocabularyPlan) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "initializer_range": _INITIALIZER_RANGE,
        "mask_token_id": tokenizer.token_to_id(plan.mask),
        "eos_token_id": tokenizer.token_to_id(plan.eos),
        "pad_token_id": tokenizer.token_to_id(plan.pad),
    }

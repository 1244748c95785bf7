"""What two vocabularies share."""

from __future__ import annotations

from typing import Any

from tide_core.alignment.bytes import token_table


def shared_vocabulary_size(tokenizer_a: Any, tokenizer_b: Any) -> int:
    """Longest id prefix on which both tokenizers' tokens are the same bytes.

    Logits are cut to this prefix where student and teacher share a vocabulary (TIDE, arXiv 2604.26951):
    beyond it an id may mean another special token to each side.

    Args:
        tokenizer_a: a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.
        tokenizer_b: the other one.

    Returns:
        The number of leading ids with equal byte strings; 0 when the first id differs.

    Raises:
        TokenizerError: a tokenizer of an unsupported kind.
    """
    return token_table(tokenizer_a).equal_prefix(token_table(tokenizer_b))

"""Which tokens begin a pre-token: what ALM's outcome debiasing asks of a model (arXiv 2503.20083).

A pre-tokenizer cuts a text before merging; tokens never reach over its cuts. Which cut stands before a token
depends on the text before it, save for white space and special tokens: these always begin a pre-token. Only
they are counted, so that a model's probability of a boundary is a sum over a fixed part of its vocabulary.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from tokenizers import Tokenizer

from tide_core.alignment.bytes import token_table

_WHITE_SPACE = frozenset(b" \t\n\r")


def begins_pretoken(tokenizer: Tokenizer, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
    """For each id below ``vocab_size``, whether its token begins with white space or is an added token.

    Ids that the tokenizer does not have (padded rows of an embedding) begin nothing.
    """
    table = token_table(tokenizer)
    begins = np.zeros(vocab_size, dtype=np.bool_)
    known = min(table.size, vocab_size)
    starts = [bool(text) and text[0] in _WHITE_SPACE for text in table.byte_strings[:known]]
    begins[:known] = np.array(starts, dtype=np.bool_) | table.is_added[:known]
    return begins

"""Which tokens begin a pre-token, against each token's own bytes."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from tide_core.alignment.boundaries import begins_pretoken
from tide_core.alignment.bytes import token_bytes
from tide_core.checkpoints.tokenizer_folder import load_tokenizer


@pytest.fixture(params=["llada2_folder", "qwen_folder", "sentencepiece_folder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(request.getfixturevalue(request.param))


def test_white_space_and_added_tokens_begin_one(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size() + 7
    begins = begins_pretoken(tokenizer, size)
    added = set(tokenizer.get_added_tokens_decoder())
    assert not begins[-7:].any(), "rows that no token uses begin nothing"
    for token_id in range(size - 7):
        content = b"".join(token_bytes(tokenizer, [token_id]))
        assert begins[token_id] == (token_id in added or content[:1] in (b" ", b"\t", b"\n", b"\r"))


def test_a_text_is_cut_before_its_white_space(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode("one two\nthree", add_special_tokens=False)
    begins = begins_pretoken(tokenizer, tokenizer.get_vocab_size())[np.array(encoded.ids)]
    starts = {start for (start, _), is_start in zip(encoded.offsets, begins, strict=True) if is_start}
    assert {3, 7} <= starts | {start - 1 for start in starts}
    assert not starts & {1, 2, 5, 6, 9}


def test_a_smaller_vocabulary_is_cut(tokenizer: Tokenizer) -> None:
    np.testing.assert_array_equal(begins_pretoken(tokenizer, 50), begins_pretoken(tokenizer, 60)[:50])

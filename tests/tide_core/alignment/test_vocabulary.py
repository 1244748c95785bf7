"""The shared prefix of two vocabularies."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models

from tide_core.alignment.bytes import token_table
from tide_core.alignment.vocabulary import shared_vocabulary_size
from tide_core.checkpoints.tokenizer_folder import load_tokenizer


def shared_by_a_loop(a: Tokenizer, b: Tokenizer) -> int:
    size = 0
    while a.id_to_token(size) is not None and b.id_to_token(size) is not None:
        if token_table(a).bytes_of(size) != token_table(b).bytes_of(size):
            break
        size += 1
    return size


def test_it_ends_where_the_special_tokens_differ(qwen_folder: Path, wedlm_folder: Path) -> None:
    student, teacher = load_tokenizer(qwen_folder), load_tokenizer(wedlm_folder)
    size = shared_vocabulary_size(student, teacher)
    assert size == student.token_to_id("<|im_end|>") + 1
    assert size == shared_by_a_loop(student, teacher) == shared_vocabulary_size(teacher, student)
    assert size < min(student.get_vocab_size(), teacher.get_vocab_size())


def test_a_tokenizer_shares_all_with_itself(qwen_folder: Path) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    assert shared_vocabulary_size(tokenizer, load_tokenizer(qwen_folder)) == tokenizer.get_vocab_size()


def test_different_tokenizers_share_what_happens_to_agree(qwen_folder: Path, llada2_folder: Path) -> None:
    a, b = load_tokenizer(qwen_folder), load_tokenizer(llada2_folder)
    assert shared_vocabulary_size(a, b) == shared_by_a_loop(a, b) < 400


def small(vocab: dict[str, int], is_byte_level: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    fallback = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.decoder = decoders.ByteLevel() if is_byte_level else fallback
    return tokenizer


def test_bytes_decide_and_not_the_way_they_are_written() -> None:
    level = small({"a": 0, "Ġ": 1, "Ċ": 2, "Ġb": 3})
    fallback = small({"a": 0, "▁": 1, "<0x0A>": 2, "▁c": 3}, is_byte_level=False)
    assert shared_vocabulary_size(level, fallback) == 3


def test_the_same_string_may_be_other_bytes() -> None:
    assert shared_vocabulary_size(small({"Ġ": 0}), small({"Ġ": 0}, is_byte_level=False)) == 0
    added = small({"a": 0})
    added.add_special_tokens(["Ġ"])
    assert shared_vocabulary_size(small({"a": 0, "Ġ": 1}), added) == 1


def test_a_hole_ends_the_prefix() -> None:
    assert shared_vocabulary_size(small({"a": 0, "c": 2}), small({"a": 0, "b": 1, "c": 2})) == 1

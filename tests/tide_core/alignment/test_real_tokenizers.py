"""Real text under real tokenizers, against an oracle that walks byte by byte."""

import ast
import functools
import inspect
import itertools
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support.fixtures_tokenizers import standard_library_texts
from tide_core.alignment.bytes import token_byte_lengths, token_spans
from tide_core.alignment.chunks import align_chunks_batch
from tide_core.alignment.vocabulary import shared_vocabulary_size
from tide_core.checkpoints.tokenizer_folder import load_tokenizer

PAIRS = [("qwen3", "llama3_1"), ("qwen3", "gemma3"), ("qwen3", "deepseek_v3"), ("llama3_1", "gemma3")]

# Article 1 of the Universal Declaration of Human Rights (in the public domain), and what else a chat holds.
SCRIPT_LINES = """\
All human beings are born free and equal in dignity and rights.
Alle Menschen sind frei und gleich an Würde und Rechten geboren.
Tous les êtres humains naissent libres et égaux en dignité et en droits.
Все люди рождаются свободными и равными в своём достоинстве и правах.
人人生而自由,在尊严和权利上一律平等。
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.
Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.
ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.
👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 🏳️‍🌈 ❤️‍🔥 1️⃣ ☕️ 🤷🏻‍♀️
∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → ∂u/∂t ≤ ∮ E·dl ≈ 3.14159265
\tif (a[i] != b[j]) {\r\n\t\treturn  ~0u;\r\n\t}"""
SCRIPTS = SCRIPT_LINES.split("\n")


def segments() -> list[str]:
    """Docstrings, function bodies, mixed scripts and odd white space: over two thousand real pieces."""
    found = [text for text in standard_library_texts() if text]
    for module in (argparse_source(), inspect.getsource(textwrap), inspect.getsource(inspect)):
        tree = ast.parse(module)
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        found += [source for node in nodes if (source := ast.get_source_segment(module, node))]
        found += [line for line in module.splitlines() if line.strip()]
    mixed = list(itertools.permutations(SCRIPTS, 2))
    found += SCRIPTS + [f"{a} {b}" for a, b in mixed[::2]] + [f"  {a}\n\n\t{b}   " for a, b in mixed[1::2]]
    return [text for text in dict.fromkeys(found) if len(text) < 4000]


def argparse_source() -> str:
    import argparse

    return inspect.getsource(argparse)


def chunks_byte_by_byte(lengths_a: list[int], lengths_b: list[int]) -> list[list[int]]:
    """A chunk ends after each byte at which a token of both sides ends."""
    owners = [np.repeat(np.arange(len(side)), side) for side in (lengths_a, lengths_b)]
    is_end = np.append((np.diff(owners[0]) != 0) & (np.diff(owners[1]) != 0), True)
    last = np.flatnonzero(is_end)
    first = np.append(0, last[:-1] + 1)
    columns = [column for side in owners for column in (side[first], side[last] + 1)]
    return np.stack(columns, 1).tolist() if len(owners[0]) else []


@pytest.fixture(scope="module")
def texts(real_tokenizer_folder: Callable[[str], Path]) -> list[str]:
    """The segments, in the Unicode form that Qwen's tokenizer brings them into."""
    normalizer = load_tokenizer(real_tokenizer_folder("qwen3")).normalizer
    found = [normalizer.normalize_str(text) for text in segments()]
    assert len(found) > 2000
    return found


@pytest.fixture(scope="module")
def real_tokenizer(real_tokenizer_folder: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    loaded: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in loaded:
            loaded[name] = load_tokenizer(real_tokenizer_folder(name))
        return loaded[name]

    return load


@pytest.fixture(scope="module")
def real_lengths(
    real_tokenizer: Callable[[str], Tokenizer], texts: list[str]
) -> Callable[[str], list[list[int]]]:
    """Bytes of each token of each text, by a tokenizer's name."""

    @functools.cache
    def lengths(name: str) -> list[list[int]]:
        tokenizer = real_tokenizer(name)
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        spans = (
            token_spans(tokenizer, encoding.ids, text.encode())
            for encoding, text in zip(encodings, texts, strict=True)
        )
        return [(span[:, 1] - span[:, 0]).tolist() for span in spans]

    return lengths


@pytest.mark.parametrize(("name_a", "name_b"), PAIRS)
def test_chunks_of_real_text_equal_the_oracle(
    name_a: str, name_b: str, real_lengths: Callable[[str], list[list[int]]], texts: list[str]
) -> None:
    lengths = [real_lengths(name) for name in (name_a, name_b)]
    counts = [np.array([len(content) for content in side]) for side in lengths]
    flat = [np.array([n for content in side for n in content]) for side in lengths]
    chunks, content = align_chunks_batch(flat[0], counts[0], flat[1], counts[1])
    starts = [np.cumsum(count) - count for count in counts]
    assert (np.diff(content) >= 0).all()
    by_text = np.split(chunks, np.searchsorted(content, np.arange(1, len(texts))))
    for number in range(len(texts)):
        found = by_text[number] - np.repeat([starts[0][number], starts[1][number]], 2)
        assert found.tolist() == chunks_byte_by_byte(lengths[0][number], lengths[1][number]), texts[number]


def test_byte_lengths_agree_with_the_offsets_of_the_encoder(
    real_tokenizer: Callable[[str], Tokenizer], texts: list[str]
) -> None:
    """An independent witness: the encoder's own character offsets, wherever tokens end between characters."""
    tokenizer = real_tokenizer("qwen3")
    checked = 0
    for text in texts[::7]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ends = np.cumsum(token_byte_lengths(tokenizer, encoding.ids)).tolist()
        end_of_character = {len(text[:i].encode()): i for i in range(len(text) + 1)}
        for end, (_, offset) in zip(ends, encoding.offsets, strict=True):
            if end in end_of_character:
                assert end_of_character[end] == offset
                checked += 1
    assert checked > 5000


def test_the_shared_vocabulary_is_found_within_a_web_request(
    real_tokenizer: Callable[[str], Tokenizer], real_tokenizer_folder: Callable[[str], Path]
) -> None:
    mine = load_tokenizer(real_tokenizer_folder("qwen3"))
    start = time.process_time()
    assert shared_vocabulary_size(mine, real_tokenizer("qwen3")) == 151_669
    assert time.process_time() - start < 2.0
    # `<|endoftext|>` differs; before it Llama and Qwen agree on the bytes and their first merges alone.
    assert shared_vocabulary_size(mine, real_tokenizer("llama3_1")) < 1000

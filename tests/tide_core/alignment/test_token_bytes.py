"""The bytes of each token, for byte-level BPE and for SentencePiece with byte fallback."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from tide_core.alignment.bytes import BYTE_ALPHABET, token_byte_lengths, token_bytes, token_spans, token_table
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import AlignmentError, TokenizerError

TEXTS = [
    "plain words, and numbers 1234567",
    "三个字被切成九个字节。漢字かな交じり文",
    "emoji 👩‍👩‍👧‍👦 and flags 🇩🇪🇯🇵, skin 👍🏽",
    "combining e\u0301 a\u0308 and Z̤͔a̮l̗g̳o",
    "مرحبا بالعالم — שלום עולם",
    "  runs   of    spaces\tand\t\ttabs  ",
    "line\r\nbreaks\r\n\r\nof Windows\n",
    "def f(x):\n    return x  # code\n",
    "\x00\x01 control \x7f",
    "a",
]


@pytest.fixture(params=["llada2_folder", "qwen_folder", "sentencepiece_folder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    loaded = load_tokenizer(request.getfixturevalue(request.param))
    if loaded.normalizer is not None and "NFC" in str(loaded.normalizer):
        loaded.normalizer = None
    return loaded


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_spell_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = token_bytes(tokenizer, ids)
    assert b"".join(pieces) == text.encode()
    assert token_byte_lengths(tokenizer, ids).tolist() == [len(piece) for piece in pieces]
    spans = token_spans(tokenizer, ids, text.encode())
    assert [text.encode()[start:end] for start, end in spans.tolist()] == pieces


def test_a_character_may_be_several_tokens(qwen_folder: Path) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    ids = tokenizer.encode("漢", add_special_tokens=False).ids
    assert token_byte_lengths(tokenizer, ids).tolist() == [1, 1, 1]


def test_the_byte_alphabet_has_every_byte_once() -> None:
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    assert {character for character, _ in BYTE_ALPHABET.items()} == set(pre_tokenizers.ByteLevel.alphabet())
    # The tokenizers library is the oracle of the mapping: it spells single bytes with it.
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("\n", " ", "A", "ÿ", "\x7f", "Ą"):
        spelled = level.pre_tokenize_str(text)[0][0]
        assert bytes(BYTE_ALPHABET[character] for character in spelled) == text.encode()


def test_a_tokenizer_of_transformers_is_taken_too(qwen_folder: Path) -> None:
    fast = AutoTokenizer.from_pretrained(qwen_folder)
    ids = fast("Grüße, 世界", add_special_tokens=False)["input_ids"]
    assert b"".join(token_bytes(fast, ids)) == "Grüße, 世界".encode()
    assert token_byte_lengths(fast, np.array(ids)).sum() == len("Grüße, 世界".encode())


def test_special_tokens_count_the_bytes_of_their_text(qwen_folder: Path) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    end = tokenizer.token_to_id("<|im_end|>")
    assert token_byte_lengths(tokenizer, [end]).tolist() == [10]
    table = token_table(tokenizer)
    assert table.is_special[end]
    assert table.is_added[end]
    assert not table.is_special[0]


def test_tokens_added_later_are_seen(qwen_folder: Path) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    size = token_table(tokenizer).size
    tokenizer.add_tokens([AddedToken("<|new|>", special=True)])
    assert token_byte_lengths(tokenizer, [size]).tolist() == [7]


@pytest.mark.parametrize("wrong", [-1, 10_000_000])
def test_ids_outside_the_vocabulary_are_named(qwen_folder: Path, wrong: int) -> None:
    with pytest.raises(TokenizerError, match=f"id {wrong} ") as caught:
        token_byte_lengths(load_tokenizer(qwen_folder), [1, wrong])
    assert caught.value.code == "unknown_token_id"


def test_a_hole_in_the_vocabulary_is_no_token() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 3}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert token_byte_lengths(tokenizer, [0, 3]).tolist() == [1, 1]
    with pytest.raises(TokenizerError, match="id 2 "):
        token_bytes(tokenizer, [2])


def test_other_kinds_of_tokenizers_are_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece") as caught:
        token_byte_lengths(tokenizer, [0])
    assert caught.value.code == "unsupported_tokenizer"
    tokenizer.decoder = None
    with pytest.raises(TokenizerError, match="none"):
        token_byte_lengths(tokenizer, [0])
    with pytest.raises(TokenizerError, match="fast tokenizer"):
        token_byte_lengths("a string", [0])


def llama2_like() -> Tokenizer:
    """A space is put before a text and after every special token; Metaspace undoes it."""
    pieces = ["<unk>", "▁", "h", "i", "▁h", "▁hi", "▁▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "h"), ("▁h", "i"), ("▁", "▁")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.mark.parametrize("text", ["hi", " hi", "hi</s>hi", "<s>hi  hi</s>", "<s></s>", "  </s> hi", "é</s>é"])
def test_a_space_that_the_tokenizer_puts_in_front_counts_nothing(text: str) -> None:
    tokenizer = llama2_like()
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans = token_spans(tokenizer, encoding.ids, text.encode())
    assert spans[0, 0] == 0
    assert spans[-1, 1] == len(text.encode())
    assert (spans[1:, 0] == spans[:-1, 1]).all(), "without a gap"
    for (start, end), piece in zip(spans.tolist(), token_bytes(tokenizer, encoding.ids), strict=True):
        assert text.encode()[start:end] in (piece, piece.removeprefix(b" "))


def test_a_metaspace_decoder_is_understood() -> None:
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁hi", -1.0)], unk_id=0, byte_fallback=False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    assert token_bytes(tokenizer, tokenizer.encode("hi hi").ids) == [b" hi", b" hi"]
    assert token_spans(tokenizer, tokenizer.encode("hi hi").ids, b"hi hi").tolist() == [[0, 2], [2, 5]]


def test_white_space_swallowed_by_an_added_token_belongs_to_it(qwen_folder: Path) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    tokenizer.add_tokens(
        [AddedToken("<left>", lstrip=True, special=True), AddedToken("<right>", rstrip=True, special=True)]
    )
    text = "one \n<left>two<right>  three<right> "
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    spans = token_spans(tokenizer, ids, text.encode())
    found = {token_bytes(tokenizer, [i])[0]: text[a:b] for i, (a, b) in zip(ids, spans.tolist(), strict=True)}
    assert found[b"<left>"] == " \n<left>"
    assert [text[a:b] for a, b in spans.tolist() if text[a:b].startswith("<right>")] == [
        "<right>  ",
        "<right> ",
    ]
    assert (spans[1:, 0] == spans[:-1, 1]).all()


@pytest.mark.parametrize(
    "text", ["e\u0301 changes under NFC", "<|im_end|>e\u0301", "e\u0301<|im_end|>", "<|im_end|>x<|im_end|>"]
)
def test_tokens_of_another_text_are_refused(qwen_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    other = text if "\u0301" in text else text.replace("x<", "y<")
    with pytest.raises(AlignmentError, match="do not spell the text from byte") as caught:
        token_spans(tokenizer, ids, other.encode())
    assert caught.value.code == "tokens_do_not_cover_text"
    with pytest.raises(AlignmentError, match="from byte"):
        token_spans(tokenizer, ids, b"")
    with pytest.raises(AlignmentError, match="from byte"):
        token_spans(tokenizer, ids[:1], text.encode() + b" and more")


def test_white_space_that_a_normaliser_strips_belongs_to_no_token(qwen_folder: Path) -> None:
    tokenizer = load_tokenizer(qwen_folder)
    tokenizer.normalizer = normalizers.Strip()
    for text in ("  words", "words  ", "   "):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        with pytest.raises(AlignmentError, match="do not spell"):
            token_spans(tokenizer, ids, text.encode())


def test_a_base_token_that_is_raw_text_counts_its_own_bytes() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"漢 字": 0}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    assert token_bytes(tokenizer, [0]) == ["漢 字".encode()]


def test_no_tokens_cover_no_text(qwen_folder: Path) -> None:
    assert token_spans(load_tokenizer(qwen_folder), [], b"").shape == (0, 2)


def test_alignment_needs_neither_torch_nor_transformers() -> None:
    script = (
        "import sys\n"
        "from tide_core.alignment import bytes, chunks, coverage, vocabulary\n"
        "from tide_core.checkpoints import special_tokens, tokenizer_folder\n"
        "heavy = {'torch', 'transformers', 'ray', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

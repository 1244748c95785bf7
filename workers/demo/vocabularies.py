"""Two byte-level BPE tokenisers of different cut, as genuine Hugging Face folders.

The Qwen family (student and dense teacher share their byte-level entries and the first special tokens; the
special tokens behind them differ, as those of Qwen3 and WeDLM do) and the LLaDA2 family (another vocabulary,
another pre-tokenisation, another chat format).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# Qwen2's own expression: words with the mark before them, single digits, runs of marks, white space.
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Cuts identifiers at capitals, and never joins a mark with a word: boundaries that Qwen's does not have.
_LLADA_PATTERN = r" ?\p{Lu}*\p{Ll}+| ?\p{Lu}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLADA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<role>HUMAN</role>' }}"
    "{% elif message['role'] == 'system' %}{{ '<role>SYSTEM</role>' }}"
    "{% else %}{{ '<role>ASSISTANT</role>' }}{% endif %}{{ message['content'] + '<|role_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)


@dataclass(frozen=True)
class VocabularyPlan:
    """How one tokeniser is made.

    Attributes:
        pattern: regular expression that cuts text before merging.
        entries: size of the byte-level vocabulary, special tokens not counted.
        special_tokens: appended behind it in this order.
        template: chat template in Jinja.
        eos, pad, mask: which of the special tokens play these parts.
    """

    pattern: str
    entries: int
    special_tokens: tuple[str, ...]
    template: str
    eos: str
    pad: str
    mask: str


_QWEN_SHARED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

STUDENT = VocabularyPlan(
    pattern=_QWEN_PATTERN,
    entries=2048,
    special_tokens=(*_QWEN_SHARED, "<tool_call>", "</tool_call>", "<think>", "</think>", "<|mask|>"),
    template=QWEN_TEMPLATE,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    mask="<|mask|>",
)
DENSE_TEACHER = VocabularyPlan(
    pattern=_QWEN_PATTERN,
    entries=2048,
    special_tokens=(
        *_QWEN_SHARED,
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|MASK|>",
    ),
    template=QWEN_TEMPLATE,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    mask="<|MASK|>",
)
MOE_TEACHER = VocabularyPlan(
    pattern=_LLADA_PATTERN,
    entries=2176,
    special_tokens=("<role>", "</role>", "<|role_end|>", "<|endoftext|>", "<|mask|>"),
    template=LLADA_TEMPLATE,
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    mask="<|mask|>",
)


def train_tokenizer(texts: Iterable[str], plan: VocabularyPlan) -> Tokenizer:
    """Train a byte-level BPE and append the plan's special tokens. Deterministic for the same texts.

    Args:
        texts: what it is trained on.
        plan: pattern, size and special tokens.

    Returns:
        A tokeniser of `plan.entries + len(plan.special_tokens)` entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(plan.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.entries,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in plan.special_tokens]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, plan: VocabularyPlan, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as published folders have them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in plan.special_tokens
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "chat_template": plan.template,
        "clean_up_tokenization_spaces": False,
        "eos_token": plan.eos,
        "mask_token": plan.mask,
        "model_max_length": 512,
        "pad_token": plan.pad,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(plan.template)

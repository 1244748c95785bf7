"""The demo's tokenisers: they differ where they should, share what they should, and are genuine folders."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tide_core.alignment.vocabulary import shared_vocabulary_size
from tide_core.checkpoints.special_tokens import find_special_tokens
from workers.demo.vocabularies import (
    DENSE_TEACHER,
    MOE_TEACHER,
    STUDENT,
    VocabularyPlan,
    train_tokenizer,
    write_tokenizer,
)

TEXTS = [
    "Return a new array of bytes.",
    "def read_text(self, encoding=None):",
    "17 + 25 = 42",
    "Grüße, 世界 🙂",
    "HUMAN",
] * 40
PLANS = {"student": STUDENT, "dense": DENSE_TEACHER, "moe": MOE_TEACHER}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: train_tokenizer(TEXTS, plan) for name, plan in PLANS.items()}


def test_student_and_dense_teacher_share_content_and_turn_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    shared = shared_vocabulary_size(tokenizers["student"], tokenizers["dense"])
    assert shared == tokenizers["student"].token_to_id("<|im_end|>") + 1
    assert shared < min(tokenizers[name].get_vocab_size() for name in ("student", "dense"))
    mask_ids = [tokenizers["student"].token_to_id("<|mask|>"), tokenizers["dense"].token_to_id("<|MASK|>")]
    assert min(mask_ids) >= shared
    assert mask_ids[0] != mask_ids[1]


def test_the_moe_teacher_cuts_text_elsewhere(tokenizers: dict[str, Tokenizer]) -> None:
    pieces = [
        [text for text, _ in tokenizers[name].pre_tokenizer.pre_tokenize_str("def readText(self):")]
        for name in ("student", "moe")
    ]
    assert pieces[0] != pieces[1]


@pytest.mark.parametrize("name", PLANS)
def test_any_text_survives(tokenizers: dict[str, Tokenizer], name: str) -> None:
    text = "naïve\t\r\n ÷ 日本語 👩‍🚀 x_y  z"
    assert tokenizers[name].decode(tokenizers[name].encode(text).ids) == text


@pytest.mark.parametrize(("name", "plan"), PLANS.items())
def test_folders_name_their_special_tokens(
    tokenizers: dict[str, Tokenizer], name: str, plan: VocabularyPlan, tmp_path: Path
) -> None:
    write_tokenizer(tokenizers[name], plan, tmp_path)
    special = find_special_tokens(tmp_path)
    assert special.mask is not None
    assert special.eos is not None
    assert (special.mask.text, special.eos.text) == (plan.mask, plan.eos)
    assert special.mask.id == tokenizers[name].token_to_id(plan.mask)


def test_transformers_renders_the_same_conversation(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tokenizers["moe"], MOE_TEACHER, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert loaded.apply_chat_template(messages, tokenize=False) == (
        "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>Ho<|role_end|>"
    )


def test_training_is_deterministic() -> None:
    first, second = (train_tokenizer(TEXTS, STUDENT).to_str() for _ in range(2))
    assert first == second

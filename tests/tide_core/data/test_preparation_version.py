"""The same inputs must give the same samples, or the version of the preparation must change."""

import hashlib
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.support.fixtures_tokenizers import (
    LLADA2_SPECIAL,
    LLADA2_TEMPLATE,
    QWEN_SPECIAL,
    QWEN_TEMPLATE,
    write_folder,
)
from tide_core.contracts.job import DataSource, TemplateOptions
from tide_core.contracts.objective import Pipeline
from tide_core.data.dataset_preparation import PREPARATION_VERSION
from tide_core.data.row_preparation import pair_recipe, prepare_rows
from tide_core.data.sources import SourceRow

RECORDED = {
    (1, Pipeline.CROSS_TOKENIZER): "ee0f96194e49ba2a",
    (1, Pipeline.SHARED_TOKENIZER): "9c5391637c7fd190",
}
ROWS = [
    {
        "messages": [
            {"role": "user", "content": "one there"},
            {"role": "assistant", "content": " the other one\n"},
        ]
    },
    {"prompt": "the", "response": "e\u0301 漢字 other\r\n\tone"},
    {"text": "there, the other 👍🏽"},
]


def fixed_folder(folder: Path, merges: list[tuple[str, str]], special: list[str], template: str) -> Path:
    """A tokenizer with merges written by hand, the same on every machine."""
    vocab = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return write_folder(folder, tokenizer, template, eos_token=special[0], mask_token="<|mask|>")


def test_samples_are_those_recorded_for_this_version(tmp_path: Path) -> None:
    student = fixed_folder(
        tmp_path / "student", [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "n")], QWEN_SPECIAL, QWEN_TEMPLATE
    )
    teacher = fixed_folder(
        tmp_path / "teacher",
        [("h", "e"), ("t", "he"), ("he", "r"), ("n", "e")],
        LLADA2_SPECIAL,
        LLADA2_TEMPLATE,
    )
    rows = [SourceRow(number, 0, fields) for number, fields in enumerate(ROWS)]
    for pipeline in Pipeline:
        recipe = pair_recipe(
            str(student),
            str(teacher),
            pipeline=pipeline,
            student_length=96,
            teacher_length=96,
            block_size=16,
            template=TemplateOptions(),
        )
        outcome = prepare_rows(rows, [DataSource(location="rows")], recipe)
        assert len(outcome.samples) == 3
        digest = hashlib.blake2b(digest_size=8)
        for sample in outcome.samples:
            for name, value in sorted(vars(sample).items()):
                digest.update(f"{name} {np.asarray(value).tolist()}".encode())
        assert digest.hexdigest() == RECORDED[PREPARATION_VERSION, pipeline], (
            "samples changed: raise PREPARATION_VERSION and record the new digest"
        )

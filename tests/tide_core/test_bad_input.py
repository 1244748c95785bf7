"""Every kind of bad input gets one error of ours that names the tensor, key or field.

With the tests' own checks of annotations off, which would speak first and which no user has. (Checkpoints and
``config.json``: ``models/test_checkpoint_files.py`` and ``models/test_configuration.py``.)
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from tide_core.alignment.bytes import token_byte_lengths, token_spans
from tide_core.alignment.chunks import align_chunks, align_chunks_batch
from tide_core.contracts.errors import (
    AlignmentError,
    InvalidInputError,
    NonFiniteError,
    ShapeError,
    TideError,
)
from tide_core.losses.calm import (
    chunk_log_probs,
    forward_calm,
    reverse_bernoulli_kl,
    reverse_calm,
    tidal_calm,
)
from tide_core.losses.cross_entropy import masked_cross_entropy, target_log_probs
from tide_core.losses.fused_linear import (
    linear_forward_kl,
    linear_reverse_kl,
    linear_target_log_probs,
    linear_tidal_kl,
)
from tide_core.losses.kl import forward_kl, reverse_kl
from tide_core.losses.sparse import bucket_log_probs, sparse_forward_kl, sparse_reverse_kl, top_k_of_logits
from tide_core.losses.tidal import tidal_kl
from tide_core.masks.block_attention import block_attention_mask, compact_layout
from tide_core.masks.compdemo import complementary_split
from tide_core.masks.streams import SampleKey
from tide_core.models.dense import DenseDecoder
from tide_core.samplers.block import infill, sample
from tide_core.schedules.tidal import tidal_lambda

Case = tuple[Callable[[], Any], type[TideError], str | None]
GOOD = torch.zeros(2, 5)
HALF = torch.full((2,), 0.5)
LOG = torch.full((3,), -1.0)
HEAD = torch.ones(5, 4)
HIDDEN = torch.ones(2, 4)


@pytest.fixture(autouse=True)
def _no_annotation_checks() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    copy = tensor.clone()
    copy.view(-1)[1] = value
    return copy


def model() -> DenseDecoder:
    sizes = {
        "model_type": "a2d-qwen3", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "mask_token_id": 3,
    }  # fmt: skip
    return DenseDecoder.from_config(sizes)


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    made.decoder = decoders.ByteLevel()
    return made


def non_finite(value: float) -> dict[str, Case]:
    bad, hot = spoilt(GOOD, value), {"temperature": 1.0}
    wide = {"temperature": 1.0, "shared_vocab": 5}
    lp = spoilt(LOG, value if value != -math.inf else math.nan)
    top = top_k_of_logits(GOOD, 2, temperature=1.0)
    buckets = bucket_log_probs(GOOD, top.ids, temperature=1.0)
    cases: dict[str, Case] = {
        "cross-entropy": (lambda: masked_cross_entropy(bad, torch.tensor([0, 1])), NonFiniteError, "logits"),
        "target": (lambda: target_log_probs(bad, torch.tensor([0, 1])), NonFiniteError, "logits"),
        "top-k": (lambda: top_k_of_logits(bad, 2, **hot), NonFiniteError, "teacher_logits"),
        "buckets": (lambda: bucket_log_probs(bad, top.ids, **hot), NonFiniteError, "student_logits"),
        "sparse": (
            lambda: sparse_forward_kl(buckets, spoilt(top.log_probs, math.nan), top.log_tail, **hot),
            NonFiniteError,
            "teacher_log_probs",
        ),
        "sparse tail": (
            lambda: sparse_reverse_kl(buckets, top.log_probs, spoilt(top.log_tail, math.nan), **hot),
            NonFiniteError,
            "teacher_log_tail",
        ),
        "sparse student": (
            lambda: sparse_forward_kl(spoilt(buckets, math.nan), top.log_probs, top.log_tail, **hot),
            NonFiniteError,
            "student_buckets",
        ),
        "fused target": (
            lambda: linear_target_log_probs(spoilt(HIDDEN, value), HEAD, torch.tensor([0, 1])),
            NonFiniteError,
            "hidden",
        ),
    }
    for name, loss in (("forward", forward_kl), ("reverse", reverse_kl)):
        cases[f"{name} student"] = (lambda f=loss: f(bad, GOOD, **hot), NonFiniteError, "student_logits")
        cases[f"{name} teacher"] = (lambda f=loss: f(GOOD, bad, **hot), NonFiniteError, "teacher_logits")
    cases["tidal"] = (lambda: tidal_kl(GOOD, bad, HALF, **hot), NonFiniteError, "teacher_logits")
    for name, loss in (("forward", linear_forward_kl), ("reverse", linear_reverse_kl)):
        for place, param in enumerate(("student_hidden", "student_head", "teacher_hidden", "teacher_head")):
            tensors = [HIDDEN, HEAD, HIDDEN, HEAD]
            tensors[place] = spoilt(tensors[place], value)
            cases[f"fused {name} {param}"] = (lambda f=loss, t=tensors: f(*t, **wide), NonFiniteError, param)
    for name, calm in (("forward", forward_calm), ("reverse", reverse_calm), ("kl", reverse_bernoulli_kl)):
        cases[f"{name} calm student"] = (lambda f=calm: f(lp, LOG, **hot), TideError, "student_chunk_lp")
        cases[f"{name} calm teacher"] = (lambda f=calm: f(LOG, lp, **hot), TideError, "teacher_chunk_lp")
    cases["tidal calm"] = (lambda: tidal_calm(LOG, lp, 0.5, **hot), TideError, "teacher_chunk_lp")
    return cases


NON_FINITE = {
    f"{name} {value}": case
    for value in (math.nan, math.inf, -math.inf)
    for name, case in non_finite(value).items()
}
HOT = {"temperature": 1.0}
WIDE = {"temperature": 1.0, "shared_vocab": 5}
OTHERS: dict[str, Case] = {
    "target id": (lambda: target_log_probs(GOOD, torch.tensor([0, 5])), InvalidInputError, "target_ids"),
    "negative target id": (
        lambda: linear_target_log_probs(HIDDEN, HEAD, torch.tensor([-1, 0])), InvalidInputError, "target_ids",
    ),
    "bucket id": (
        lambda: bucket_log_probs(GOOD, torch.tensor([[1], [5]]), **HOT), InvalidInputError, "ids",
    ),
    "chunk id": (
        lambda: chunk_log_probs(LOG[None], torch.tensor([[0, 1, 2]]), 2), InvalidInputError, "chunk_ids",
    ),
    "input id": (lambda: model()(torch.tensor([[0, 20]])), InvalidInputError, "input_ids"),
    "negative input id": (lambda: model()(torch.tensor([[-1, 2]])), InvalidInputError, "input_ids"),
    "prompt id": (lambda: sample(model(), [[0, 20]]), InvalidInputError, "prompts"),
    "infilled id": (lambda: infill(model(), [[0, -1]]), InvalidInputError, "prompts"),
    "tokenizer's id": (lambda: token_byte_lengths(tokenizer(), [0, 2]), InvalidInputError, "ids"),
    "logits of two vocabularies": (
        lambda: forward_kl(GOOD, torch.zeros(2, 6), **HOT), ShapeError, "teacher_logits",
    ),
    "shares of other rows": (
        lambda: linear_tidal_kl(HIDDEN, HEAD, HIDDEN, HEAD, torch.zeros(3), **WIDE), ShapeError, "lambda_t",
    ),
    "hidden of other rows": (
        lambda: linear_forward_kl(HIDDEN, HEAD, torch.ones(3, 4), HEAD, **WIDE), ShapeError, "teacher_hidden",
    ),
    "hidden of another width": (
        lambda: linear_forward_kl(HIDDEN, HEAD, torch.ones(2, 3), HEAD, **WIDE), ShapeError, "teacher_head",
    ),
    "targets of other rows": (
        lambda: target_log_probs(GOOD, torch.tensor([0])), ShapeError, "target_ids",
    ),
    "chunks of other number": (lambda: forward_calm(LOG, LOG[:2], **HOT), ShapeError, "teacher_chunk_lp"),
    "sparse rows": (
        lambda: sparse_forward_kl(torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(3), **HOT),
        ShapeError,
        "teacher_log_probs",
    ),
    "mask of other keys": (
        lambda: model()(torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)),
        ShapeError,
        "attention_mask",
    ),
    "mask of numbers": (
        lambda: model()(torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6)), ShapeError, "attention_mask",
    ),
    "positions of another length": (
        lambda: model()(torch.zeros(2, 6, dtype=torch.long), None, torch.zeros(2, 5, dtype=torch.long)),
        ShapeError,
        "position_ids",
    ),
    "flags of another length": (
        lambda: infill(model(), [[0, 1]], is_masked=[[True]]), InvalidInputError, "is_masked",
    ),
    "flags of other rows": (
        lambda: infill(model(), [[0, 1]], is_masked=[[True, False]] * 2), InvalidInputError, "is_masked",
    ),
    "lengths beyond the sequence": (
        lambda: compact_layout(torch.zeros(1, 8, dtype=torch.bool), torch.tensor([9]), 4),
        ShapeError,
        "lengths",
    ),
    "a masked position beyond the length": (
        lambda: compact_layout(torch.ones(1, 8, dtype=torch.bool), torch.tensor([4]), 4),
        ShapeError,
        "is_masked",
    ),
    "a mask of numbers to split": (
        lambda: complementary_split(torch.ones(3), 0.5, SampleKey(0, 0, 0)), ShapeError, "is_masked",
    ),
    "no block": (lambda: block_attention_mask(8, 0), InvalidInputError, "block_size"),
    "progress beyond the end": (
        lambda: tidal_lambda(1.5, torch.tensor([0.5])), InvalidInputError, "progress",
    ),
    "sides of other bytes": (
        lambda: align_chunks(np.array([1, 2]), np.array([4])), AlignmentError, "byte_lengths_b",
    ),
    "the second content's sides": (
        lambda: align_chunks_batch(np.array([1, 2]), np.array([1, 1]), np.array([1, 3]), np.array([1, 1])),
        AlignmentError,
        "byte_lengths_b",
    ),
    "another number of contents": (
        lambda: align_chunks_batch(np.array([1]), np.array([1]), np.array([1]), np.array([1, 0])),
        ShapeError,
        "counts_b",
    ),
    "negative bytes": (lambda: align_chunks(np.array([-1]), np.array([-1])), ShapeError, "byte_lengths_a"),
    "tokens of another text": (lambda: token_spans(tokenizer(), [0, 1], b"ac"), AlignmentError, None),
}  # fmt: skip


@pytest.mark.parametrize("name", [*NON_FINITE, *OTHERS])
def test_one_error_names_what_is_wrong(name: str) -> None:
    call, kind, param = (NON_FINITE | OTHERS)[name]
    with pytest.raises(TideError) as caught:
        call()
    assert isinstance(caught.value, kind)
    assert param is None or caught.value.param == param

"""Teachers of each family answer scores through the real engine: engine and head know no family."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.workers.teachers.test_engine import staircase_allows
from tide_core.contracts.families import FAMILIES, QWEN2
from tide_core.contracts.scores import Layout, ScoreRequest, Want
from tide_core.models.decoder import Decoder
from tide_core.models.registry import model_class
from workers.teachers.engine import EngineSettings, TeacherEngine
from workers.teachers.tiny import MASK_ID, tiny_teacher

BLOCK = 8
LENGTHS = (13, 22, 9)
# The causal order, which WeDLM alone knows, is among the layouts of test_engine.py, on WeDLM's own teacher.
CASES = [
    (name, Layout(layout))
    for name, family in FAMILIES.items()
    for layout in family.attention
    if layout != Layout.CAUSAL
]


def ask(layout: Layout) -> ScoreRequest:
    draws = np.random.default_rng(5)
    tokens = sum(LENGTHS)
    # The first token of a sequence too: nothing stands before it.
    groups = (draws.random(tokens) < 0.5).astype(np.uint8)
    groups[0] = 1
    return ScoreRequest(
        token_ids=draws.integers(0, 256, tokens).astype(np.int32),
        offsets=np.cumsum([0, *LENGTHS]).astype(np.int64),
        groups=groups,
        layout=layout,
        want=Want.TARGET_LOG_PROB,
        block_size=BLOCK,
    )


def without_the_move(model: Decoder) -> Decoder:
    """The same weights in a causal family, whose states stay where they are."""
    if not model.is_shifted:
        return model
    plain = model_class(QWEN2.model_type).from_config(
        model.config.to_json() | {"model_type": QWEN2.model_type}
    )
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def visible(layout: Layout, length: int) -> list[list[bool]]:
    """Who may see whom, written out; with the staircase the first ``length`` are the clean copy."""
    if layout is Layout.BLOCK_STAIRCASE:
        size = 2 * length
        return [[staircase_allows(q, k, length, BLOCK) for k in range(size)] for q in range(size)]
    blocks = layout is Layout.BLOCK_CAUSAL
    return [[not blocks or k // BLOCK <= q // BLOCK for k in range(length)] for q in range(length)]


def naive_answers(model: Decoder, request: ScoreRequest) -> npt.NDArray[Any]:
    plain, answers = without_the_move(model), []
    for start, end in zip(request.offsets[:-1], request.offsets[1:], strict=True):
        ids = torch.from_numpy(request.token_ids[start:end].astype(np.int64))
        is_masked = torch.from_numpy(request.groups[start:end] > 0)
        noised, length = ids.masked_fill(is_masked, MASK_ID), len(ids)
        has_clean_copy = request.layout is Layout.BLOCK_STAIRCASE
        inputs = torch.cat([ids, noised]) if has_clean_copy else noised
        positions = torch.arange(length).repeat(2 if has_clean_copy else 1)
        states = plain.hidden_states(
            inputs[None], torch.tensor(visible(request.layout, length))[None], positions[None]
        )
        clean, noisy = states[0, :length], states[0, -length:]
        if model.is_shifted:
            # A block is finished before the next one begins: its last clean state answers for the next token.
            from_clean = torch.arange(length) % BLOCK == 0 if has_clean_copy else torch.zeros(length).bool()
            before = torch.where(from_clean[:, None], clean.roll(1, 0), noisy.roll(1, 0))
            noisy = torch.cat([noisy[:1], before[1:]])
        log_probs = (noisy.double() @ model.lm_head.weight.double().T).log_softmax(-1)
        answers.append(log_probs.gather(1, ids[:, None])[is_masked, 0].numpy())
    return np.concatenate(answers)


@pytest.mark.parametrize(("name", "layout"), CASES, ids=[f"{name}-{layout}" for name, layout in CASES])
def test_answers_equal_a_naive_forward(name: str, layout: Layout) -> None:
    model = tiny_teacher(name, seed=3)
    engine = TeacherEngine(
        model,
        fingerprint="weights",
        tokenizer_fingerprint="tokenizer",
        settings=EngineSettings(max_batch_tokens=128, row_slice=7, vocab_slice=50),
    )
    try:
        found = engine.submit(ask(layout)).result(30)
    finally:
        engine.close()
    np.testing.assert_allclose(found.values, naive_answers(model, ask(layout)), atol=2e-5, rtol=0)

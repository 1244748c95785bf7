"""The block sampler: against a plain reference, cached against uncached, and what it promises about
batches.
"""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_core.contracts.errors import InvalidInputError, NonFiniteError
from tide_core.models.dense import DenseConfig
from tide_core.models.student import BlockDiffusionStudent
from tide_core.samplers.block import infill, sample
from tide_core.samplers.choosing import above_threshold, even_share, most_confident, predict
from tide_core.samplers.settings import CommittedTokens, SampleResult, SamplerSettings

MASK, EOS, VOCAB = 5, 1, 61
FIELDS: dict[str, Any] = {
    "model_type": "a2d-qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
    "initializer_range": 0.4,
    "mask_token_id": MASK,
    "eos_token_id": EOS,
}
PROMPTS = [[7], [8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37]]


@pytest.fixture(scope="module")
def student() -> BlockDiffusionStudent:
    # Float64: ties and near-ties between tokens are then never decided by rounding.
    return BlockDiffusionStudent.from_config(DenseConfig.from_json(FIELDS), seed=2).double()


def reference(
    student: BlockDiffusionStudent, prompt: list[int], new: int, block: int, per_step: int
) -> list[int]:
    """Greedy sampling of one prompt that is whole blocks long, without batch, cache or padding."""
    ids = list(prompt)
    for _ in range(new // block):
        start = len(ids)
        ids += [MASK] * block
        open_places = list(range(start, len(ids)))
        while open_places:
            blocks = torch.arange(len(ids)) // block
            with torch.no_grad():
                hidden = student(torch.tensor([ids]), (blocks[:, None] >= blocks)[None])
                logits = student.lm_head(hidden)[0]
            logits[:, MASK] = -math.inf
            probabilities = logits.softmax(-1)
            best = sorted(open_places, key=lambda place: -float(probabilities[place].max()))[:per_step]
            for place in best:
                ids[place] = int(probabilities[place].argmax())
                open_places.remove(place)
    return ids[len(prompt) :]


@pytest.mark.parametrize("per_step", [1, 2, 4])
def test_greedy_sampling_equals_a_plain_loop(student: BlockDiffusionStudent, per_step: int) -> None:
    prompt = PROMPTS[3]
    wanted = SamplerSettings(max_new_tokens=12, block_size=4, steps=12 // per_step)
    result = sample(student, [prompt], wanted, eos_token_ids=())
    assert result.ids == [reference(student, prompt, 12, 4, per_step)]
    assert result.forwards == 12 // per_step
    assert result.tokens_per_forward == per_step


VARIANTS = {
    "greedy": SamplerSettings(max_new_tokens=10, block_size=4),
    "few steps": SamplerSettings(max_new_tokens=10, block_size=4, steps=5),
    "threshold": SamplerSettings(max_new_tokens=10, block_size=4, threshold=0.3),
    "noise": SamplerSettings(max_new_tokens=10, block_size=4, temperature=0.8, seed=3),
    "guidance": SamplerSettings(max_new_tokens=10, block_size=4, guidance=1.5),
    "blocks from token 0": SamplerSettings(max_new_tokens=10, block_size=4, pads_prompt=False),
    "all": SamplerSettings(
        max_new_tokens=11, block_size=4, temperature=0.5, guidance=0.5, threshold=0.4, pads_prompt=False
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_and_uncached_decoding_agree(student: BlockDiffusionStudent, name: str) -> None:
    steps: list[list[CommittedTokens]] = []
    results = []
    for uses_cache in (True, False):
        steps.append([])
        wanted = replace(VARIANTS[name], uses_cache=uses_cache)
        results.append(sample(student, PROMPTS, wanted, eos_token_ids=(), on_commit=steps[-1].append))
    assert results[0] == results[1]
    assert steps[0] == steps[1]
    assert all(len(ids) == VARIANTS[name].max_new_tokens for ids in results[0].ids)
    assert not any(MASK in ids for ids in results[0].ids)


def test_cached_logits_are_the_uncached_ones_in_float32(
    student: BlockDiffusionStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = BlockDiffusionStudent.from_config(DenseConfig.from_json(FIELDS), seed=2)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for uses_cache in (True, False):
        handle = single.lm_head.register_forward_hook(
            lambda *call, key=uses_cache: seen[key].append(call[-1].clone())
        )
        wanted = SamplerSettings(max_new_tokens=12, block_size=4, uses_cache=uses_cache)
        sample(single, PROMPTS, wanted, eos_token_ids=())
        handle.remove()
    assert len(seen[True]) == 12
    for cached, plain in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prompts_answer_does_not_depend_on_its_batch(student: BlockDiffusionStudent, name: str) -> None:
    wanted = VARIANTS[name]
    if name in ("few steps", "blocks from token 0"):
        wanted = replace(wanted, steps=None)
    alone = sample(student, PROMPTS[:1], wanted, eos_token_ids=())
    together = sample(student, PROMPTS, wanted, eos_token_ids=())
    assert together.ids[0] == alone.ids[0]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{len(prompt)} tokens")
def test_blocks_from_token_0_are_those_of_training(student: BlockDiffusionStudent, prompt: list[int]) -> None:
    """The prompt's tail and the first masks share a block, as in a training sequence."""
    ids, end = list(prompt), len(prompt) + 7
    while len(ids) < end or MASK in ids[:end]:
        if MASK not in ids[:end]:
            ids += [MASK] * (4 - len(ids) % 4)
        blocks = torch.arange(len(ids)) // 4
        with torch.no_grad():
            logits = student.lm_head(student(torch.tensor([ids]), (blocks[:, None] >= blocks)[None]))[0]
        logits[:, MASK] = -math.inf
        surest = logits.softmax(-1).max(-1).values
        place = max((p for p, token in enumerate(ids[:end]) if token == MASK), key=lambda p: float(surest[p]))
        ids[place] = int(logits[place].argmax())
    wanted = SamplerSettings(max_new_tokens=7, block_size=4, pads_prompt=False)
    assert sample(student, [prompt], wanted, eos_token_ids=()).ids == [ids[len(prompt) : end]]


def test_answers_stop_at_the_end_token(student: BlockDiffusionStudent) -> None:
    wanted = SamplerSettings(max_new_tokens=24, block_size=4)
    free = sample(student, PROMPTS, wanted, eos_token_ids=())
    # Whatever token the first answer has in its second block shall end it.
    end = free.ids[0][5]
    place = free.ids[0].index(end)
    stopped = sample(student, PROMPTS[:1], wanted, eos_token_ids=[end])
    assert stopped.ids == [free.ids[0][:place]]
    assert stopped.reached_end == [True]
    assert stopped.forwards < free.forwards
    assert free.reached_end == [False] * 4


def test_one_ended_row_does_not_stop_the_others(student: BlockDiffusionStudent) -> None:
    wanted = SamplerSettings(max_new_tokens=16, block_size=4)
    free = sample(student, PROMPTS, wanted, eos_token_ids=())
    end = free.ids[0][2]
    mixed = sample(student, PROMPTS, wanted, eos_token_ids=[end])
    for row, ids in enumerate(free.ids):
        assert mixed.ids[row] == (ids[: ids.index(end)] if end in ids else ids)
        assert mixed.reached_end[row] is (end in ids)


def test_streaming_tells_every_token_once_and_where(student: BlockDiffusionStudent) -> None:
    for pads_prompt in (True, False):
        seen: dict[tuple[int, int], int] = {}
        forwards = []

        def note(step: CommittedTokens, seen: dict = seen, forwards: list = forwards) -> None:
            forwards.append(step.forward)
            for position, token in zip(step.positions, step.token_ids, strict=True):
                assert (step.row, position) not in seen
                seen[step.row, position] = token

        wanted = SamplerSettings(max_new_tokens=9, block_size=4, steps=4, pads_prompt=pads_prompt)
        result = sample(student, PROMPTS, wanted, eos_token_ids=(), on_commit=note)
        assert [[seen[row, place] for place in range(9)] for row in range(4)] == result.ids
        assert forwards == sorted(forwards)
        assert max(forwards) == result.forwards


def test_infilling_keeps_what_is_given(student: BlockDiffusionStudent) -> None:
    sequences = [[7, 8, MASK, 10, MASK, MASK], [9] * 11 + [MASK], [3, 4]]
    wanted = SamplerSettings(block_size=4)
    result = infill(student, sequences, wanted)
    for sequence, filled in zip(sequences, result.ids, strict=True):
        assert len(filled) == len(sequence)
        for given_token, token in zip(sequence, filled, strict=True):
            assert token == given_token or (given_token == MASK != token)
    assert infill(student, sequences, replace(wanted, uses_cache=False)) == result
    explicit = infill(
        student, [[7, 8, 9, 10, 2, 2]], wanted, is_masked=[[False, False, True, False, True, True]]
    )
    assert explicit.ids[0] == infill(student, sequences[:1], wanted).ids[0]
    with pytest.raises(InvalidInputError, match="2 tokens and 1 flags"):
        infill(student, [[7, 8]], wanted, is_masked=[[True]])


def test_bidirectional_sampling_sees_the_masks_behind(student: BlockDiffusionStudent) -> None:
    prompt = PROMPTS[3]
    ids = torch.tensor([prompt + [MASK] * 8])
    with torch.no_grad():
        logits = student.lm_head(student(ids))[0, 8:12]
    logits[:, MASK] = -math.inf
    surest = int(logits.softmax(-1).max(-1).values.argmax())
    first: list[CommittedTokens] = []
    wanted = SamplerSettings(max_new_tokens=8, block_size=4, is_bidirectional=True)
    sample(student, [prompt], wanted, eos_token_ids=(), on_commit=first.append)
    assert first[0] == CommittedTokens(0, [surest], [int(logits[surest].argmax())], 1)


def test_guidance_moves_away_from_the_promptless_logits(student: BlockDiffusionStudent) -> None:
    prompt = PROMPTS[3]
    with torch.no_grad():
        blocks = torch.arange(12) // 4
        pattern = (blocks[:, None] >= blocks)[None]
        with_prompt = student.lm_head(student(torch.tensor([prompt + [MASK] * 4]), pattern))[0, 8:]
        without = student.lm_head(student(torch.tensor([[MASK] * 12]), pattern))[0, 8:]
    logits = without + 3.0 * (with_prompt - without)
    logits[:, MASK] = -math.inf
    wanted = SamplerSettings(max_new_tokens=4, block_size=4, steps=1, guidance=2.0)
    assert sample(student, [prompt], wanted, eos_token_ids=()).ids == [logits.argmax(-1).tolist()]


def test_seeds_decide_the_noise(student: BlockDiffusionStudent) -> None:
    wanted = SamplerSettings(max_new_tokens=12, block_size=4, temperature=1.0, seed=1)
    torch.manual_seed(0)
    one = sample(student, PROMPTS, wanted, eos_token_ids=())
    torch.manual_seed(1)
    assert sample(student, PROMPTS, wanted, eos_token_ids=()) == one
    assert sample(student, PROMPTS, replace(wanted, seed=2), eos_token_ids=()).ids != one.ids
    twins = sample(student, [PROMPTS[0], PROMPTS[0]], wanted, eos_token_ids=())
    assert twins.ids[0] != twins.ids[1]


def test_gumbel_noise_draws_from_the_tempered_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 9.0])
    tokens, confidence = predict(
        lambda rows: logits.expand(len(rows), -1).clone(),
        torch.zeros(20_000, dtype=torch.long),
        vocab_size=5,
        forbidden_token=4,
        temperature=0.7,
        generators=[torch.Generator().manual_seed(0)],
    )
    share = Counter(tokens.tolist())
    expected = (logits[:4].double() / 0.7).softmax(-1)
    for token in range(4):
        assert share[token] / 20_000 == pytest.approx(float(expected[token]), abs=0.012)
    assert share[4] == 0
    torch.testing.assert_close(confidence, logits[:4].softmax(-1)[tokens])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 12))
def test_shares_add_up_and_are_even(masked: list[int], steps: int) -> None:
    counts = torch.stack([even_share(torch.tensor(masked), step, steps) for step in range(steps)])
    assert counts.sum(0).tolist() == masked
    assert (counts.max(0).values - counts.min(0).values).max() <= 1
    assert (counts.diff(dim=0) <= 0).all()


def test_choice_takes_the_surest_masked_and_the_leftmost_in_ties() -> None:
    confidence = torch.tensor([[0.9, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]])
    is_masked = torch.tensor([[False, True, True, True], [True, True, False, True]])
    chosen = most_confident(confidence, is_masked, torch.tensor([2, 1]))
    assert chosen.tolist() == [[False, True, True, False], [False, False, False, True]]
    assert most_confident(confidence, is_masked, torch.tensor([0, 9])).tolist() == [
        [False] * 4,
        is_masked[1].tolist(),
    ]
    over = above_threshold(confidence, is_masked, 0.15)
    assert over.tolist() == [[False, True, True, True], [False, True, False, True]]
    assert above_threshold(confidence, is_masked, 0.99).sum(-1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("block_size", 0),
        ("steps", 0),
        ("threshold", 1.0),
        ("temperature", -1.0),
        ("guidance", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SamplerSettings(**{name: value})
    assert caught.value.param == name


def test_bad_prompts_and_models_are_refused(student: BlockDiffusionStudent) -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        sample(student, [])
    with pytest.raises(InvalidInputError, match="token 61"):
        sample(student, [[3], [61]])
    maskless = BlockDiffusionStudent.from_config(DenseConfig.from_json(FIELDS | {"mask_token_id": None}))
    with pytest.raises(InvalidInputError, match="no mask token"):
        sample(maskless, [[3]])
    broken = BlockDiffusionStudent.from_config(DenseConfig.from_json(FIELDS))
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        sample(broken, [[3]], SamplerSettings(max_new_tokens=2, block_size=2))


def test_an_empty_prompt_and_the_models_own_end_token_work(student: BlockDiffusionStudent) -> None:
    result = sample(student, [[], [4, 6]], SamplerSettings(max_new_tokens=4, block_size=4))
    assert isinstance(result, SampleResult)
    assert all(EOS not in ids for ids in result.ids)


def test_the_models_mode_is_left_as_it_was(student: BlockDiffusionStudent) -> None:
    student.train()
    sample(student, [[3]], SamplerSettings(max_new_tokens=2, block_size=2))
    assert student.training
    student.eval()

"""The schedules of the tools that others use, by hand and against a plain loop."""

from typing import Any

import pytest
import torch

from tide_core.models.dense import DenseConfig
from tide_core.models.student import BlockDiffusionStudent
from tide_core.samplers.block import sample
from tide_core.samplers.choosing import round_shares
from tide_core.samplers.settings import CommittedTokens, SamplerSettings, Schedule

MASK, VOCAB, BLOCK = 5, 61, 4
PROMPTS = [[7], [8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36, 37]]


@pytest.fixture(scope="module")
def student() -> BlockDiffusionStudent:
    fields = {
        "model_type": "a2d-qwen3", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "tie_word_embeddings": False, "initializer_range": 0.4, "mask_token_id": MASK,
    }  # fmt: skip
    return BlockDiffusionStudent.from_config(DenseConfig.from_json(fields), seed=2).double()


@pytest.mark.parametrize(
    ("masked", "steps", "shares"),
    [
        (10, 4, [2, 3, 2, 3]),  # 2.5, 8/3, 2.5, the rest
        (7, 3, [2, 2, 3]),  # 7/3, 2.5, the rest
        (5, 2, [2, 3]),  # 2.5 goes to the even number
        (3, 2, [2, 1]),  # 1.5 too
        (32, 4, [8, 8, 8, 8]),
        (3, 3, [1, 1, 1]),
        (2, 5, [1, 1]),  # 0.4, 0.5, 2/3; then 1/2, 1: steps without a token are left out
        (4, 1, [4]),
        (0, 3, []),
    ],
)
def test_rounded_shares_by_hand(masked: int, steps: int, shares: list[int]) -> None:
    assert round_shares(masked, steps) == shares


def test_rounded_shares_always_add_up() -> None:
    for masked in range(40):
        for steps in range(1, 50):
            assert sum(round_shares(masked, steps)) == masked


def plain_loop(
    student: BlockDiffusionStudent, prompt: list[int], new: int, shares: list[list[int]]
) -> list[int]:
    """Greedy sampling as the dLLM tools do: the prompt padded on the left, the last block cut."""
    padding = -len(prompt) % BLOCK
    ids = [0] * padding + list(prompt)
    for block, counts in enumerate(shares):
        ids += [MASK] * min(BLOCK, new - block * BLOCK)
        for count in counts:
            blocks = torch.arange(len(ids)) // BLOCK
            is_seen = (blocks[:, None] >= blocks) & (torch.arange(len(ids)) >= padding)
            positions = (torch.arange(len(ids)) - padding).clamp_min(0)
            with torch.no_grad():
                hidden = student(torch.tensor([ids]), is_seen[None], positions[None])
                probabilities = student.lm_head(hidden)[0].softmax(-1)
            probabilities[:, MASK] = 0.0
            open_places = [place for place, token in enumerate(ids) if token == MASK]
            for place in sorted(open_places, key=lambda place: -float(probabilities[place].max()))[:count]:
                ids[place] = int(probabilities[place].argmax())
    return ids[padding + len(prompt) :]


@pytest.mark.parametrize(
    ("new", "steps", "shares"),
    [
        # Two blocks of ceil(3 / 2) steps; the last one is two tokens long.
        (6, 3, [[2, 2], [1, 1]]),
        # ceil(5 / 2) steps: 4/3, a little under 1.5 in float32, and the rest; then one token each.
        (7, 5, [[1, 1, 2], [1, 1, 1]]),
        # The paper's setting for multiple choice: three tokens, fewer than a block.
        (3, 3, [[1, 1, 1]]),
        (8, None, [[1] * 4, [1] * 4]),
    ],
)
@pytest.mark.parametrize("uses_cache", [True, False])
def test_the_dllm_schedule_equals_a_plain_loop(
    student: BlockDiffusionStudent, new: int, steps: int | None, shares: list[list[int]], uses_cache: bool
) -> None:
    settings = SamplerSettings(
        max_new_tokens=new, block_size=BLOCK, steps=steps, schedule=Schedule.DLLM, uses_cache=uses_cache
    )
    seen: list[CommittedTokens] = []
    together = sample(student, PROMPTS, settings, eos_token_ids=())
    for prompt, answer in zip(PROMPTS, together.ids, strict=True):
        seen.clear()
        alone = sample(student, [prompt], settings, eos_token_ids=(), on_commit=seen.append)
        assert alone.ids == [plain_loop(student, prompt, new, shares)] == [answer]
        assert [len(step.token_ids) for step in seen] == [count for block in shares for count in block]


def test_a_last_block_that_stays_masked_gives_other_tokens(student: BlockDiffusionStudent) -> None:
    fields: dict[str, Any] = {"max_new_tokens": 3, "block_size": BLOCK, "steps": 3}
    one, other = (
        sample(student, PROMPTS, SamplerSettings(**fields, schedule=schedule), eos_token_ids=())
        for schedule in Schedule
    )
    assert one.ids != other.ids
    assert all(len(ids) == 3 for ids in one.ids + other.ids)


def test_the_even_schedule_puts_the_remainder_first(student: BlockDiffusionStudent) -> None:
    seen: list[CommittedTokens] = []
    settings = SamplerSettings(max_new_tokens=8, block_size=BLOCK, steps=5)
    sample(student, [PROMPTS[3]], settings, eos_token_ids=(), on_commit=seen.append)
    assert [len(step.token_ids) for step in seen] == [2, 1, 1, 2, 2]

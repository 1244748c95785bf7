"""Sample from a teacher through the score contract alone: ask for hidden states at what is still masked.

Block by block as LLaDA2.0 does (arXiv 2512.15745): a block is masked whole, the tokens whose probability
exceeds a threshold are fixed, at least one a step, until the block is clean. Works for every layout, since a
question is a sequence with marks, whatever the teacher attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tide_core.contracts.scores import FIRST_VIEW, ScoreRequest, ScoreResponse, Want
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.training.collating import score_request
from tide_core.training.matching import bfloat16_rows


@dataclass
class _Answer:
    """A prompt with what follows; the last block may hold undecided tokens."""

    ids: list[int]
    prompt: int
    undecided: list[int] = field(default_factory=list)
    is_ended: bool = False


def sample_teacher(
    teacher: TeacherAccess,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    block_size: int,
    threshold: float,
    mask_token_id: int,
    eos_token_ids: Sequence[int],
    on_step: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Continue prompts; gives the new tokens of each, cut before its first end token.

    Args:
        teacher: the way to it, with its LM head.
        prompts: in the teacher's own tokens.
        max_new_tokens: tokens to append, at most.
        block_size: blocks count from each prompt's token 0, as in training.
        threshold: probability above which a token is fixed.
        mask_token_id: the teacher's; it is never chosen.
        eos_token_ids: tokens that end an answer.
        on_step: called after every round of questions.

    Raises:
        ScoreError: the teacher could not answer.
    """
    answers = [_Answer(list(prompt), len(prompt)) for prompt in prompts]
    while active := [answer for answer in answers if _has_more(answer, max_new_tokens, block_size)]:
        request = _question(teacher, active, block_size)
        response = teacher.transport.submit(request).result()
        tokens, confidence = _choices(teacher, response, mask_token_id)
        begin = 0
        for answer in active:
            end = begin + len(answer.undecided)
            _fix(answer, tokens[begin:end], confidence[begin:end], threshold)
            if not answer.undecided:
                answer.is_ended = any(token in eos_token_ids for token in answer.ids[answer.prompt :])
            begin = end
        on_step()
    return [_cut(answer.ids[answer.prompt :], max_new_tokens, eos_token_ids) for answer in answers]


def _has_more(answer: _Answer, max_new_tokens: int, block_size: int) -> bool:
    """Whether something is left to decide; opens the next block where the last one is done."""
    if answer.undecided:
        return True
    length = len(answer.ids)
    if answer.is_ended or length - answer.prompt >= max_new_tokens:
        return False
    width = block_size - length % block_size
    answer.undecided = list(range(length, length + width))
    # What stands at a masked place is never seen; any id of the vocabulary does.
    answer.ids += [0] * width
    return True


def _question(teacher: TeacherAccess, active: Sequence[_Answer], block_size: int) -> ScoreRequest:
    sequences = []
    for answer in active:
        groups = np.zeros(len(answer.ids), dtype=np.uint8)
        groups[answer.undecided] = FIRST_VIEW
        sequences.append((np.array(answer.ids, dtype=np.int32), groups))
    request = score_request(
        sequences,
        layout=teacher.layout,
        want=Want.HIDDEN,
        block_size=block_size,
        job_id=teacher.job_id,
        weight=teacher.weight,
    )
    assert request is not None, "every active answer has an undecided token"
    return request


@torch.no_grad()
def _choices(
    teacher: TeacherAccess, response: ScoreResponse, mask_token_id: int
) -> tuple[list[int], list[float]]:
    """The most probable token at each undecided place, and its probability."""
    hidden = bfloat16_rows(response.values, np.arange(response.values.shape[0])).to(teacher.head)
    tokens, confidence = [], []
    for rows in torch.split(hidden, 512):
        logits = (rows @ teacher.head.T).float()
        logits[:, mask_token_id] = -torch.inf
        best = logits.softmax(dim=1).max(dim=1)
        tokens += best.indices.tolist()
        confidence += best.values.tolist()
    return tokens, confidence


def _fix(answer: _Answer, tokens: list[int], confidence: list[float], threshold: float) -> None:
    surest = max(range(len(tokens)), key=confidence.__getitem__)
    left = []
    for number, place in enumerate(answer.undecided):
        if confidence[number] > threshold or number == surest:
            answer.ids[place] = tokens[number]
        else:
            left.append(place)
    answer.undecided = left


def _cut(tokens: Sequence[int], limit: int, eos_token_ids: Sequence[int]) -> list[int]:
    kept = list(tokens[:limit])
    end = next((place for place, token in enumerate(kept) if token in eos_token_ids), None)
    return kept[:end]

"""Exact match: prompts whose sampled answer must equal the reference, in all and by group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tide_core.checkpoints.special_tokens import find_special_tokens
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import DataError
from tide_core.contracts.job import ExactMatchTask, TemplateOptions
from tide_core.data.conversations import Conversation, Message, UnusableRowError, read_row
from tide_core.data.sources import iterate_rows, open_source
from tide_core.data.templates import ChatTemplate
from tide_core.models.student import BlockDiffusionStudent
from tide_core.samplers.block import sample
from tide_core.samplers.settings import SamplerSettings

THRESHOLD = 0.95
"""Confidence above which a token is fixed, LLaDA2.0's way (arXiv 2512.15745): several a forward."""
BATCH = 64


@dataclass(frozen=True)
class Task:
    """One prompt with its reference answer and the group that it counts for."""

    prompt: tuple[Message, ...]
    reference: str
    group: str | None


@dataclass(frozen=True)
class Matches:
    """Which tasks a model answered exactly.

    Attributes:
        is_match: one flag a task.
        answers: what the model said.
    """

    is_match: tuple[bool, ...]
    answers: tuple[str, ...]


class PromptSide:
    """A tokenizer with its template: prompts into ids, answers back into text.

    Args:
        folder: tokenizer folder.
        template: options for the chat template.
    """

    def __init__(self, folder: Path, template: TemplateOptions) -> None:
        options = {"enable_thinking": template.enable_thinking} | dict(template.extra)
        self._template = ChatTemplate.from_folder(folder, options)
        self._tokenizer: Tokenizer = load_tokenizer(folder)
        special = find_special_tokens(folder, self._tokenizer)
        self.eos_token_ids = special.stop_ids
        self.mask_token_id = special.mask.id if special.mask else -1

    def prompt_ids(self, task: Task) -> list[int]:
        """The prompt up to where the model's answer begins."""
        text = self._template.render(task.prompt, add_generation_prompt=True)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def read_tasks(spec: ExactMatchTask) -> list[Task]:
    """The tasks of a source, in its order; rows that are no conversation are left out.

    Raises:
        DataError: no usable row.
    """
    tasks: list[Task] = []
    for row in iterate_rows([open_source(spec.source)]):
        try:
            read = read_row(row.fields, spec.source) if row.fields is not None else None
        except UnusableRowError:
            continue
        if isinstance(read, Conversation) and len(read.messages) > 1 and row.fields is not None:
            group = row.fields.get(spec.group_field) if spec.group_field else None
            reference = read.messages[-1].content
            tasks.append(Task(read.messages[:-1], reference, None if group is None else str(group)))
        if len(tasks) == spec.limit:
            break
    if not tasks:
        raise DataError(
            f"{spec.source.location} holds no prompt with an answer: exact match needs messages, or a prompt "
            "and a response.",
            code="empty_dataset",
            param="evaluation.exact_match.source",
        )
    return tasks


def student_matches(
    student: BlockDiffusionStudent,
    side: PromptSide,
    tasks: Sequence[Task],
    *,
    max_new_tokens: int,
    block_size: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Matches:
    """Sample a student's answers greedily, blocks counted from token 0 as in training, and compare."""
    settings = SamplerSettings(
        max_new_tokens=max_new_tokens, block_size=block_size, threshold=THRESHOLD, pads_prompt=False
    )
    prompts = [side.prompt_ids(task) for task in tasks]
    # Prompts of like length together, so that little is padding.
    order = sorted(range(len(tasks)), key=lambda number: len(prompts[number]))
    answers = [""] * len(tasks)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        result = sample(
            student, [prompts[number] for number in chosen], settings, eos_token_ids=side.eos_token_ids
        )
        for number, ids in zip(chosen, result.ids, strict=True):
            answers[number] = side.text(ids)
        on_progress(min(len(order), start + BATCH))
    return compared(tasks, answers)


def compared(tasks: Sequence[Task], answers: Sequence[str]) -> Matches:
    """Compare answers with references, white space at both ends aside."""
    pairs = zip(answers, tasks, strict=True)
    return Matches(tuple(answer.strip() == task.reference.strip() for answer, task in pairs), tuple(answers))


def match_figures(tasks: Sequence[Task], matches: Matches) -> dict[str, Any]:
    """Share of exact answers, in all and by group."""
    groups: Mapping[str, list[bool]] = defaultdict(list)
    for task, is_match in zip(tasks, matches.is_match, strict=True):
        if task.group is not None:
            groups[task.group].append(is_match)
    return {
        "rate": sum(matches.is_match) / len(tasks),
        "count": len(tasks),
        "by_group": {
            name: {"rate": sum(flags) / len(flags), "count": len(flags)}
            for name, flags in sorted(groups.items())
        },
    }

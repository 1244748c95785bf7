"""Exact match: prompts whose sampled answer must equal the reference, in all and by group.

In: a scene, and the source of prompts that the spec names. Out: rates of each model, and a flag a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tide_core.checkpoints.special_tokens import find_special_tokens
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import DataError
from tide_core.contracts.figures import Measure
from tide_core.contracts.job import ExactMatchTask, ResolvedJobSpec, TemplateOptions
from tide_core.data.conversations import Conversation, Message, UnusableRowError, read_row
from tide_core.data.sources import iterate_rows, open_source
from tide_core.data.templates import ChatTemplate
from tide_core.evaluation.evaluator import STUDENT, TEACHER, Findings, OnProgress, Scene, ignore_progress
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.evaluation.teacher_sampling import sample_teacher
from tide_core.models.student import BlockDiffusionStudent
from tide_core.samplers.block import sample
from tide_core.samplers.settings import SamplerSettings

THRESHOLD = 0.95
"""Confidence above which a token is fixed, LLaDA2.0's way (arXiv 2512.15745): several a forward."""
BATCH = 64


@dataclass(frozen=True)
class MatchTask:
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


class ExactMatch:
    """The evaluator of exact match; runs where the spec names a source of prompts."""

    name = "exact_match"
    stage = "sampling"
    unit = "answers"

    def is_asked_for(self, spec: ResolvedJobSpec) -> bool:
        """Where the spec has a task for it."""
        return spec.evaluation.enabled and spec.evaluation.exact_match is not None

    def asks_teacher(self, spec: ResolvedJobSpec) -> bool:
        """For its own rate, beside the students'."""
        return self.is_asked_for(spec) and spec.evaluation.baselines

    def run(self, scene: Scene, on_progress: OnProgress = ignore_progress) -> Findings:
        """Sample from every model and compare.

        Raises:
            DataError: no usable row in the source.
            ScoreError: the teacher could not answer.
        """
        asked = scene.spec.evaluation.exact_match
        assert asked is not None
        tasks = read_tasks(asked)
        teacher = scene.teacher if scene.spec.evaluation.baselines else None
        total = (len(scene.students) + (teacher is not None)) * len(tasks)
        side = PromptSide(scene.student_folder, scene.spec.data.template)
        matches: dict[str, Matches] = {}
        for number, (name, student) in enumerate(scene.students.items()):
            before = number * len(tasks)
            matches[name] = match_student(
                student,
                side,
                tasks,
                max_new_tokens=asked.max_new_tokens,
                block_size=scene.spec.student.block_size,
                on_progress=lambda done, before=before: on_progress(before + done, total),  # type: ignore[misc]
            )
        if teacher is not None:
            matches[TEACHER] = _match_teacher(scene, teacher, tasks, asked.max_new_tokens)
            on_progress(total, total)
        return _findings(tasks, matches)


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

    def prompt_ids(self, task: MatchTask) -> list[int]:
        """The prompt up to where the model's answer begins."""
        text = self._template.render(task.prompt, add_generation_prompt=True)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def read_tasks(spec: ExactMatchTask) -> list[MatchTask]:
    """The tasks of a source, in its order; rows that are no conversation are left out.

    Raises:
        DataError: no usable row.
    """
    tasks: list[MatchTask] = []
    for row in iterate_rows([open_source(spec.source)]):
        try:
            read = read_row(row.fields, spec.source) if row.fields is not None else None
        except UnusableRowError:
            continue
        if isinstance(read, Conversation) and len(read.messages) > 1 and row.fields is not None:
            group = row.fields.get(spec.group_field) if spec.group_field else None
            reference = read.messages[-1].content
            tasks.append(MatchTask(read.messages[:-1], reference, None if group is None else str(group)))
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


def match_student(
    student: BlockDiffusionStudent,
    side: PromptSide,
    tasks: Sequence[MatchTask],
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
    return compare_answers(tasks, answers)


def compare_answers(tasks: Sequence[MatchTask], answers: Sequence[str]) -> Matches:
    """Compare answers with references, white space at both ends aside."""
    pairs = zip(answers, tasks, strict=True)
    return Matches(tuple(answer.strip() == task.reference.strip() for answer, task in pairs), tuple(answers))


def match_figures(tasks: Sequence[MatchTask], matches: Matches) -> dict[str, Any]:
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


def _match_teacher(
    scene: Scene, teacher: TeacherAccess, tasks: Sequence[MatchTask], max_new_tokens: int
) -> Matches:
    assert scene.teacher_folder is not None
    side = PromptSide(scene.teacher_folder, scene.spec.data.template)
    answers = sample_teacher(
        teacher,
        [side.prompt_ids(task) for task in tasks],
        max_new_tokens=max_new_tokens,
        block_size=scene.spec.student.block_size,
        threshold=THRESHOLD,
        mask_token_id=side.mask_token_id,
        eos_token_ids=side.eos_token_ids,
    )
    return compare_answers(tasks, [side.text(ids) for ids in answers])


def _findings(tasks: Sequence[MatchTask], matches: Mapping[str, Matches]) -> Findings:
    rates = {name: match_figures(tasks, found) for name, found in matches.items()}
    return Findings(
        figures={name: {Measure.EXACT_MATCH.value: rate} for name, rate in rates.items()},
        columns={
            name: {Measure.EXACT_MATCH.value: np.array(found.is_match, dtype=np.float64)}
            for name, found in matches.items()
        },
        measures={Measure.EXACT_MATCH: rates[STUDENT]["rate"]},
    )

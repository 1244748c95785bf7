"""The passes over the held-out sequences: students and teacher answer the same questions, and it is tallied.

In: a `HeldOutSet`, the students, the way to the teacher. Out: columns added to each model's `Tally`.

Pipeline B: one pass; at the aligned masked tokens the teacher's hidden states, through its frozen head, give
its own figures and the exact divergences. Pipeline A: tokens differ, so the teacher's NELBO is measured on
its own tokens over the same bytes, and the divergence is that of chunk likelihoods under chunk-consistent
masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from tide_core.contracts.labels import IGNORED_LABEL
from tide_core.contracts.scores import ScoreRequest, ScoreResponse, Want
from tide_core.evaluation.comparisons import bernoulli_divergence, divergences, read_targets
from tide_core.evaluation.evaluator import TEACHER, OnProgress
from tide_core.evaluation.held_out_set import HeldOutSet, is_content, is_teacher_content
from tide_core.evaluation.noise import EVALUATION_SEED, Question
from tide_core.evaluation.tally import Column, Tally
from tide_core.evaluation.teacher_access import TeacherAccess
from tide_core.losses.calm import chunk_log_probs
from tide_core.masks.corruption import corrupt, teacher_groups, teacher_groups_shared
from tide_core.masks.streams import SampleKey
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.prefetcher import AskedStep, Prefetcher
from tide_core.training.collating import NoisyInputs, noisy_inputs, score_request
from tide_core.training.drawing import DrawnSample
from tide_core.training.matching import bfloat16_rows, match_chunks, match_positions

BATCH = 32
AHEAD = 3
"""Batches whose questions are with the teacher while the students compute."""


class PassCounter:
    """Counts questions over all passes."""

    def __init__(self, total: int, tell: OnProgress) -> None:
        self._done, self._total, self._tell = 0, total, tell

    def add(self, count: int) -> None:
        """So many questions more are done."""
        self._done += count
        self._tell(self._done, self._total)


@dataclass(frozen=True)
class _Batch:
    """Questions in one forward of the students, with the request to the teacher that goes along."""

    questions: Sequence[Question]
    inputs: NoisyInputs
    drawn: Sequence[DrawnSample]
    request: ScoreRequest | None

    @property
    def sequence(self) -> Int64[np.ndarray, " masked"]:
        """The held-out sequence of each masked token."""
        numbers = np.array([question.sequence for question in self.questions], dtype=np.int64)
        return np.asarray(numbers[self.inputs.layout.masked_row.numpy()])

    @property
    def weight(self) -> Float64[np.ndarray, " masked"]:
        """The NELBO's weight of each masked token."""
        weights = np.array([question.weight for question in self.questions])
        return np.asarray(weights[self.inputs.layout.masked_row.numpy()])


@torch.no_grad()
def _read_hidden(student: BlockDiffusionStudent, inputs: NoisyInputs) -> Tensor:
    layout = inputs.layout
    return student.forward_at(inputs.input_ids, inputs.places, layout.attention_pattern, layout.position_ids)


def run_nelbo_pass(
    held_out: HeldOutSet,
    students: Mapping[str, BlockDiffusionStudent],
    teacher: TeacherAccess | None,
    tallies: Mapping[str, Tally],
    counter: PassCounter,
    with_divergence: bool,
) -> None:
    """NELBO and accuracy of all students; with a teacher (pipeline B) also its own and the divergences."""
    questions = held_out.noise.questions(held_out.samples, by_chunk=False)
    batches = (_position_batch(group, held_out, teacher) for group in _groups(questions))
    for batch, answer in _answer_ahead(batches, teacher):
        content = np.concatenate([is_content(q.sample)[q.corruption.is_masked] for q in batch.questions])
        aligned = None if teacher is None else _aligned_answer(batch, answer, teacher, tallies[TEACHER])
        for name, student in students.items():
            inputs = batch.inputs.to(student.device)
            hidden = _read_hidden(student, inputs)
            head = student.lm_head.weight
            _add_nelbo(tallies[name], batch, hidden, head, inputs.target_ids, content)
            if aligned is not None and teacher is not None and with_divergence:
                index, teacher_hidden = aligned
                forward, reverse = divergences(
                    hidden[index], head, teacher_hidden, teacher.head, teacher.shared_vocab
                )
                sequence = batch.sequence[index.numpy()]
                tallies[name].add(Column.FORWARD_KL, sequence, _to_doubles(forward))
                tallies[name].add(Column.REVERSE_KL, sequence, _to_doubles(reverse))
                tallies[name].add(Column.COMPARED, sequence, np.ones(sequence.size))
        counter.add(len(batch.questions))


def _add_nelbo(
    tally: Tally,
    batch: _Batch,
    hidden: Tensor,
    head: Tensor,
    target_ids: Tensor,
    content: NDArray[np.bool_],
) -> None:
    readout = read_targets(hidden, head, target_ids)
    sequence, nats = batch.sequence, -_to_doubles(readout.log_probs) * batch.weight
    tally.add(Column.NLL, sequence, nats)
    tally.add(Column.CONTENT_NLL, sequence[content], nats[content])
    tally.add(Column.HITS, sequence[content], _to_doubles(readout.is_hit)[content])
    tally.add(Column.ASKED, sequence[content], np.ones(int(content.sum())))


def _position_batch(group: Sequence[Question], held_out: HeldOutSet, teacher: TeacherAccess | None) -> _Batch:
    drawn = []
    if teacher is not None:
        for question in group:
            sample = question.sample
            assert sample.teacher_positions is not None
            positions = np.where(is_content(sample), sample.teacher_positions, -1)
            groups = teacher_groups_shared(question.corruption, positions, sample.teacher_ids.size, None)
            drawn.append(DrawnSample(sample, question.corruption, groups))
    return _batch(group, drawn, held_out, teacher, Want.HIDDEN)


def _aligned_answer(
    batch: _Batch, answer: ScoreResponse | None, teacher: TeacherAccess, tally: Tally
) -> tuple[Tensor, Tensor] | None:
    """Tally the teacher; gives (places among the masked tokens, the teacher's hidden states there)."""
    if answer is None:
        return None
    match = match_positions(batch.drawn, teacher.shared_vocab)
    index = match.aligned_masked_index
    hidden = bfloat16_rows(answer.values, match.answer_row).to(teacher.head)
    targets = batch.inputs.target_ids[index].to(teacher.head.device)
    readout = read_targets(hidden, teacher.head, targets)
    sequence, weight = batch.sequence[index.numpy()], batch.weight[index.numpy()]
    tally.add(Column.CONTENT_NLL, sequence, -_to_doubles(readout.log_probs) * weight)
    tally.add(Column.HITS, sequence, _to_doubles(readout.is_hit))
    tally.add(Column.ASKED, sequence, np.ones(sequence.size))
    return index, hidden


def run_teacher_pass(
    held_out: HeldOutSet, teacher: TeacherAccess, tally: Tally, counter: PassCounter
) -> None:
    """Pipeline A: the teacher's NELBO and accuracy on its own tokens of the same content."""
    asked = (_own_question(group, held_out, teacher) for group in _groups(_teacher_questions(held_out)))
    with Prefetcher(teacher.transport, asked, AHEAD) as steps:
        for step in steps:
            questions = step.payload
            masked = [q.corruption.is_masked for q in questions]
            counts = [int(mask.sum()) for mask in masked]
            sequence = np.repeat([q.sequence for q in questions], counts)
            weight = np.repeat([q.weight for q in questions], counts)
            targets = np.concatenate(
                [q.sample.teacher_ids[m] for q, m in zip(questions, masked, strict=True)]
            )
            hidden = bfloat16_rows(step.responses[0].values, np.arange(sum(counts)))
            readout = read_targets(
                hidden.to(teacher.head),
                teacher.head,
                torch.from_numpy(targets.astype(np.int64)).to(teacher.head.device),
            )
            tally.add(Column.CONTENT_NLL, sequence, -_to_doubles(readout.log_probs) * weight)
            tally.add(Column.HITS, sequence, _to_doubles(readout.is_hit))
            tally.add(Column.ASKED, sequence, np.ones(sequence.size))
            counter.add(len(questions))


def _teacher_questions(held_out: HeldOutSet) -> Iterator[Question]:
    """The teacher's own tokens of each content, masked independently at the same timesteps."""
    noise = held_out.noise
    for number, sample in enumerate(held_out.samples):
        labels = np.where(is_teacher_content(sample), sample.teacher_ids, IGNORED_LABEL)
        for stratum, t in enumerate(noise.timesteps(sample.sample_index)):
            key = SampleKey(EVALUATION_SEED - 1, stratum, sample.sample_index)
            corruption = corrupt(labels, key=key, noise=noise.hold_at(float(t)))
            if corruption.is_masked.any():
                yield Question(
                    number, sample, corruption, float(noise.schedule.weight(float(t))) / noise.count
                )


def _own_question(
    group: Sequence[Question], held_out: HeldOutSet, teacher: TeacherAccess
) -> AskedStep[Sequence[Question]]:
    sequences = [(q.sample.teacher_ids, q.corruption.is_masked.astype(np.uint8)) for q in group]
    return AskedStep(group, _requests(sequences, held_out, teacher, Want.HIDDEN))


def run_chunk_pass(
    held_out: HeldOutSet,
    students: Mapping[str, BlockDiffusionStudent],
    teacher: TeacherAccess,
    tallies: Mapping[str, Tally],
    counter: PassCounter,
) -> None:
    """Pipeline A: divergence of chunk likelihoods, under masks that hide whole chunks on both sides."""
    questions = held_out.noise.questions(held_out.samples, by_chunk=True)
    batches = (_chunk_batch(group, held_out, teacher) for group in _groups(questions))
    for batch, answer in _answer_ahead(batches, teacher):
        counter.add(len(batch.questions))
        if answer is None:
            continue
        match = match_chunks(batch.drawn)
        theirs = match.scores(answer).log_probs.double()
        numbers = np.array([question.sequence for question in batch.questions], dtype=np.int64)
        sequence = numbers[match.chunk_row.numpy()]
        for name, student in students.items():
            inputs = batch.inputs.to(student.device)
            readout = read_targets(_read_hidden(student, inputs), student.lm_head.weight, inputs.target_ids)
            token_lp = readout.log_probs.cpu()
            ours = chunk_log_probs(token_lp[None], match.masked_chunk[None], len(match.chunk_row))[0].double()
            tallies[name].add(
                Column.FORWARD_CHUNK_KL, sequence, _to_doubles(bernoulli_divergence(theirs, ours))
            )
            tallies[name].add(
                Column.REVERSE_CHUNK_KL, sequence, _to_doubles(bernoulli_divergence(ours, theirs))
            )
            tallies[name].add(Column.COMPARED_CHUNKS, sequence, np.ones(sequence.size))


def _chunk_batch(group: Sequence[Question], held_out: HeldOutSet, teacher: TeacherAccess) -> _Batch:
    drawn = []
    for question in group:
        sample = question.sample
        assert sample.student_chunk_ids is not None
        assert sample.teacher_chunk_ids is not None
        groups = teacher_groups(
            question.corruption,
            student_chunk_ids=sample.student_chunk_ids,
            teacher_chunk_ids=sample.teacher_chunk_ids,
            split=None,
        )
        drawn.append(DrawnSample(sample, question.corruption, groups))
    return _batch(group, drawn, held_out, teacher, Want.TARGET_LOG_PROB)


def _batch(
    group: Sequence[Question],
    drawn: Sequence[DrawnSample],
    held_out: HeldOutSet,
    teacher: TeacherAccess | None,
    want: Want,
) -> _Batch:
    inputs = noisy_inputs(
        [question.sample.student_ids for question in group],
        [question.corruption.is_masked for question in group],
        block_size=held_out.block_size,
        mask_token_id=held_out.mask_token_id,
    )
    requests: Sequence[ScoreRequest] = ()
    if teacher is not None:
        requests = _requests([(d.sample.teacher_ids, d.groups) for d in drawn], held_out, teacher, want)
    return _Batch(group, inputs, drawn, next(iter(requests), None))


def _requests(
    sequences: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]],
    held_out: HeldOutSet,
    teacher: TeacherAccess,
    want: Want,
) -> Sequence[ScoreRequest]:
    request = score_request(
        sequences,
        layout=teacher.layout,
        want=want,
        block_size=held_out.block_size,
        job_id=teacher.job_id,
        weight=teacher.weight,
    )
    return () if request is None else (request,)


def _answer_ahead(
    batches: Iterable[_Batch], teacher: TeacherAccess | None
) -> Iterator[tuple[_Batch, ScoreResponse | None]]:
    asked = (AskedStep(batch, () if batch.request is None else (batch.request,)) for batch in batches)
    with Prefetcher(None if teacher is None else teacher.transport, asked, AHEAD) as steps:
        for step in steps:
            yield step.payload, next(iter(step.responses), None)


def _groups(questions: Iterator[Question]) -> Iterator[list[Question]]:
    """Batches of questions of like length, so that little is padding."""
    ordered = sorted(questions, key=lambda question: question.sample.student_ids.size)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def _to_doubles(values: Tensor) -> Float64[np.ndarray, " masked"]:
    numbers: Float64[np.ndarray, " masked"] = values.cpu().double().numpy()
    return numbers

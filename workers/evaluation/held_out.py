"""The held-out passes: students and teacher answer the same questions, and their answers are tallied.

Pipeline B: one pass; at the aligned masked tokens the teacher's hidden states, through its frozen head, give
its own figures and the exact divergences. Pipeline A: tokens differ, so the teacher's NELBO is measured on
its own tokens over the same bytes, and the divergence is that of chunk likelihoods under chunk-consistent
masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from tide_core.alignment.bytes import token_byte_lengths
from tide_core.checkpoints.tokenizer_folder import load_tokenizer
from tide_core.contracts.errors import InvalidInputError
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.labels import IGNORED_LABEL
from tide_core.contracts.objective import Pipeline
from tide_core.contracts.scores import Layout, ScoreRequest, ScoreResponse, Want
from tide_core.data.samples import PreparedSample
from tide_core.losses.calm import chunk_log_probs
from tide_core.masks.corruption import corrupt, teacher_groups, teacher_groups_shared
from tide_core.masks.streams import SampleKey
from tide_core.models.student import BlockDiffusionStudent
from tide_core.scoring.prefetcher import AskedStep, Prefetcher
from tide_core.scoring.transport import ScoreTransport
from tide_core.training.collating import NoisyInputs, noisy_inputs, score_request
from tide_core.training.drawing import DrawnSample, noise_schedule
from tide_core.training.matching import bfloat16_rows, match_chunks, match_positions
from workers.evaluation.noise import EVALUATION_SEED, EvaluationNoise, Question
from workers.evaluation.readout import bernoulli_divergence, divergences, read_targets
from workers.evaluation.tally import Tally

TEACHER = "teacher"
BATCH = 32
AHEAD = 3
"""Batches whose questions are with the teacher while the students compute."""


@dataclass(frozen=True)
class TeacherAccess:
    """The way to the teacher.

    Attributes:
        transport: asks the pool.
        head: its LM head on the students' device.
        layout: what it may see.
        shared_vocab: ids that mean the same to both sides (pipeline B).
        job_id, weight: go into each request.
    """

    transport: ScoreTransport
    head: Tensor
    layout: Layout
    shared_vocab: int
    job_id: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class HeldOutSet:
    """What is measured on.

    Attributes:
        samples: the held-out sequences.
        content_bytes: float64 [sequence], bytes of the content that both sides see.
        pipeline: how student and teacher correspond.
        block_size: tokens in a block.
        mask_token_id: of the students.
        noise: timesteps and masks.
    """

    samples: Sequence[PreparedSample]
    content_bytes: Float64[np.ndarray, " sequence"]
    pipeline: Pipeline
    block_size: int
    mask_token_id: int
    noise: EvaluationNoise


def held_out_set(
    spec: ResolvedJobSpec, samples: Sequence[PreparedSample], tokenizer_folder: Path, mask_token_id: int
) -> HeldOutSet:
    """The held-out sequences of a job with their noise; the bytes are those of the content.

    Raises:
        InvalidInputError: there is no held-out sequence.
    """
    if not samples:
        raise InvalidInputError(
            "There is no held-out sequence to evaluate on: raise data.held_out.fraction, name "
            "data.held_out.sources, or disable the evaluation.",
            code="no_held_out_data",
            param="data.held_out",
        )
    tokenizer = load_tokenizer(tokenizer_folder)
    content = [token_byte_lengths(tokenizer, s.student_ids[is_content(s)]).sum() for s in samples]
    return HeldOutSet(
        samples=samples,
        content_bytes=np.array(content, dtype=np.float64),
        pipeline=Pipeline(spec.pipeline),
        block_size=spec.student.block_size,
        mask_token_id=mask_token_id,
        noise=EvaluationNoise(noise_schedule(spec), spec.noise.min_timestep, spec.evaluation.timesteps),
    )


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


OnProgress = Callable[[int, int], None]


def measure(
    held_out: HeldOutSet,
    students: Mapping[str, BlockDiffusionStudent],
    teacher: TeacherAccess | None,
    *,
    with_divergence: bool = True,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Tally]:
    """Figures of students and teacher on the held-out sequences.

    Args:
        held_out: sequences and noise.
        students: by name, such as "start" and "student".
        teacher: None leaves the teacher out.
        with_divergence: also measure each student's divergence from the teacher.
        on_progress: called with (questions done, questions in all).

    Returns:
        A tally a model; the teacher's under "teacher".
    """
    tallies = {name: _student_tally(held_out) for name in students}
    is_cross = held_out.pipeline is Pipeline.CROSS_TOKENIZER
    passes = 1 if teacher is None or not is_cross else 2 + with_divergence
    counter = _Counter(passes * len(held_out.samples) * held_out.noise.count, on_progress)
    if teacher is not None:
        tallies[TEACHER] = _teacher_tally(held_out)
    _nelbo_pass(held_out, students, None if is_cross else teacher, tallies, counter, with_divergence)
    if teacher is not None and is_cross:
        _teacher_pass(held_out, teacher, tallies[TEACHER], counter)
        if with_divergence:
            _chunk_pass(held_out, students, teacher, tallies, counter)
    return tallies


class _Counter:
    def __init__(self, total: int, tell: OnProgress) -> None:
        self._done, self._total, self._tell = 0, total, tell

    def add(self, count: int) -> None:
        self._done += count
        self._tell(self._done, self._total)


def is_content(sample: PreparedSample) -> NDArray[np.bool_]:
    """bool [student_seq]: tokens that the teacher sees too, in chunks or at aligned positions."""
    marks = sample.student_chunk_ids if sample.teacher_positions is None else sample.teacher_positions
    assert marks is not None
    content: NDArray[np.bool_] = np.asarray((marks >= 0) & (sample.labels != IGNORED_LABEL))
    return content


def _student_tally(held_out: HeldOutSet) -> Tally:
    tally = Tally(len(held_out.samples))
    trained = [float((sample.labels != IGNORED_LABEL).sum()) for sample in held_out.samples]
    tally.set("tokens", np.array(trained))
    tally.set("content_tokens", np.array([float(is_content(s).sum()) for s in held_out.samples]))
    tally.set("content_bytes", held_out.content_bytes)
    return tally


def _teacher_tally(held_out: HeldOutSet) -> Tally:
    tally = Tally(len(held_out.samples))
    tally.set("content_bytes", held_out.content_bytes)
    tally.set("content_tokens", np.array([float(_teacher_content(s).sum()) for s in held_out.samples]))
    return tally


def _teacher_content(sample: PreparedSample) -> NDArray[np.bool_]:
    """bool [teacher_seq]: the teacher's tokens of the content."""
    if sample.teacher_chunk_ids is not None:
        chunked: NDArray[np.bool_] = np.asarray(sample.teacher_chunk_ids >= 0)
        return chunked
    assert sample.teacher_positions is not None
    found = np.zeros(sample.teacher_ids.size, dtype=np.bool_)
    found[sample.teacher_positions[is_content(sample)]] = True
    return found


@torch.no_grad()
def _hidden(student: BlockDiffusionStudent, inputs: NoisyInputs) -> Tensor:
    layout = inputs.layout
    return student.forward_at(inputs.input_ids, inputs.places, layout.attention_pattern, layout.position_ids)


def _nelbo_pass(
    held_out: HeldOutSet,
    students: Mapping[str, BlockDiffusionStudent],
    teacher: TeacherAccess | None,
    tallies: Mapping[str, Tally],
    counter: _Counter,
    with_divergence: bool,
) -> None:
    """NELBO and accuracy of all students; with a teacher (pipeline B) also its own and the divergences."""
    questions = held_out.noise.questions(held_out.samples, by_chunk=False)
    batches = (_position_batch(group, held_out, teacher) for group in _groups(questions))
    for batch, answer in _answered(batches, teacher):
        content = np.concatenate([is_content(q.sample)[q.corruption.is_masked] for q in batch.questions])
        aligned = None if teacher is None else _aligned_answer(batch, answer, teacher, tallies[TEACHER])
        for name, student in students.items():
            inputs = batch.inputs.to(student.device)
            hidden = _hidden(student, inputs)
            head = student.lm_head.weight
            _add_nelbo(tallies[name], batch, hidden, head, inputs.target_ids, content)
            if aligned is not None and teacher is not None and with_divergence:
                index, teacher_hidden = aligned
                forward, reverse = divergences(
                    hidden[index], head, teacher_hidden, teacher.head, teacher.shared_vocab
                )
                sequence = batch.sequence[index.numpy()]
                tallies[name].add("forward_kl", sequence, _double(forward))
                tallies[name].add("reverse_kl", sequence, _double(reverse))
                tallies[name].add("compared", sequence, np.ones(sequence.size))
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
    sequence, nats = batch.sequence, -_double(readout.log_probs) * batch.weight
    tally.add("nll", sequence, nats)
    tally.add("content_nll", sequence[content], nats[content])
    tally.add("hits", sequence[content], _double(readout.is_hit)[content])
    tally.add("asked", sequence[content], np.ones(int(content.sum())))


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
    tally.add("content_nll", sequence, -_double(readout.log_probs) * weight)
    tally.add("hits", sequence, _double(readout.is_hit))
    tally.add("asked", sequence, np.ones(sequence.size))
    return index, hidden


def _teacher_pass(held_out: HeldOutSet, teacher: TeacherAccess, tally: Tally, counter: _Counter) -> None:
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
            tally.add("content_nll", sequence, -_double(readout.log_probs) * weight)
            tally.add("hits", sequence, _double(readout.is_hit))
            tally.add("asked", sequence, np.ones(sequence.size))
            counter.add(len(questions))


def _teacher_questions(held_out: HeldOutSet) -> Iterator[Question]:
    """The teacher's own tokens of each content, masked independently at the same timesteps."""
    noise = held_out.noise
    for number, sample in enumerate(held_out.samples):
        labels = np.where(_teacher_content(sample), sample.teacher_ids, IGNORED_LABEL)
        for stratum, t in enumerate(noise.timesteps(sample.sample_index)):
            key = SampleKey(EVALUATION_SEED - 1, stratum, sample.sample_index)
            corruption = corrupt(labels, key=key, noise=noise.frozen(float(t)))
            if corruption.is_masked.any():
                yield Question(
                    number, sample, corruption, float(noise.schedule.weight(float(t))) / noise.count
                )


def _own_question(
    group: Sequence[Question], held_out: HeldOutSet, teacher: TeacherAccess
) -> AskedStep[Sequence[Question]]:
    sequences = [(q.sample.teacher_ids, q.corruption.is_masked.astype(np.uint8)) for q in group]
    return AskedStep(group, _requests(sequences, held_out, teacher, Want.HIDDEN))


def _chunk_pass(
    held_out: HeldOutSet,
    students: Mapping[str, BlockDiffusionStudent],
    teacher: TeacherAccess,
    tallies: Mapping[str, Tally],
    counter: _Counter,
) -> None:
    """Pipeline A: divergence of chunk likelihoods, under masks that hide whole chunks on both sides."""
    questions = held_out.noise.questions(held_out.samples, by_chunk=True)
    batches = (_chunk_batch(group, held_out, teacher) for group in _groups(questions))
    for batch, answer in _answered(batches, teacher):
        counter.add(len(batch.questions))
        if answer is None:
            continue
        match = match_chunks(batch.drawn)
        theirs = match.scores(answer).log_probs.double()
        numbers = np.array([question.sequence for question in batch.questions], dtype=np.int64)
        sequence = numbers[match.chunk_row.numpy()]
        for name, student in students.items():
            inputs = batch.inputs.to(student.device)
            readout = read_targets(_hidden(student, inputs), student.lm_head.weight, inputs.target_ids)
            token_lp = readout.log_probs.cpu()
            ours = chunk_log_probs(token_lp[None], match.masked_chunk[None], len(match.chunk_row))[0].double()
            tallies[name].add("forward_chunk_kl", sequence, _double(bernoulli_divergence(theirs, ours)))
            tallies[name].add("reverse_chunk_kl", sequence, _double(bernoulli_divergence(ours, theirs)))
            tallies[name].add("compared_chunks", sequence, np.ones(sequence.size))


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


def _answered(
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


def _double(values: Tensor) -> Float64[np.ndarray, " masked"]:
    numbers: Float64[np.ndarray, " masked"] = values.cpu().double().numpy()
    return numbers

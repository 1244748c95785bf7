"""The objective of a step: the weighted sum of its terms on one micro-batch.

In: hidden states of the student at masked tokens and the teacher's scores. Out: the loss, in total and by
term.

``L = sum_k weight_k L_k`` (TIDE, arXiv 2604.26951, "L_CE + weight * L_distill"). A micro-batch returns its
share: every mean is divided by a global count, so that summing the shares over micro-batches and workers
gives the step's loss whatever their number.

Full logits ``[masked, vocab]`` are never held: all terms read the LM head in one pass over its slices
(:mod:`tide_core.losses.head_pass`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.contracts.objective import (
    AnyChunkTerm,
    CalmTerm,
    ChunkFilter,
    ChunkTerm,
    CrossEntropyTerm,
    ForwardKLTerm,
    ObjectiveTerm,
    Pipeline,
    PositionTerm,
    ReverseBernoulliKLTerm,
    ReverseCalmTerm,
    ReverseKLTerm,
    TidalCalmTerm,
    TidalTerm,
    check_terms,
    term_names,
    weighted_terms,
)
from tide_core.losses.calm import (
    chunk_log_probs,
    forward_calm,
    reverse_bernoulli_kl,
    reverse_calm,
    tidal_calm,
)
from tide_core.losses.debiasing import BoundaryLogProbs, debias, keep_chunks
from tide_core.losses.fused_linear import ReverseDivergence, TargetLogProbs, TidalDivergence
from tide_core.losses.head_pass import Statistic, statistics_of
from tide_core.losses.sparse import (
    BucketLogProbs,
    sparse_forward_kl,
    sparse_reverse_kl,
    sparse_tidal_kl,
    tail_candidates,
)
from tide_core.losses.validation import require_ids
from tide_core.objective.inputs import (
    ChunkScores,
    HiddenScores,
    Normalisers,
    ObjectiveInputs,
    TopKScores,
)
from tide_core.schedules.noise import NoiseSchedule
from tide_core.schedules.tidal import scheduled_lambda, timestep_weight

Readings = Mapping[int | str, Tensor]
"""What was read of the LM head: by the number of a term, or under one of the names below."""
TOKENS = "tokens"
"""``lp_i`` of the clean tokens, for the cross-entropy and all chunk terms."""
BOUNDARIES = "boundaries"
"""Log-probability of a boundary after each chunk whose next token is masked, in their order."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """A micro-batch's share of the step's loss.

    Attributes:
        total: scalar with gradient, the weighted sum of the terms.
        parts: detached scalar of each term before its weight, by the names in `term_names`, in their order.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


class Objective:
    """A weighted sum of typed terms.

    Args:
        terms: the terms; those with weight 0 are not computed.
        noise: the noise schedule, for the cross-entropy weight.
        slice_size: largest number of logits in one tile; None chooses by device.
        keep_bytes: most bytes of logits kept for the backward pass; None chooses by device.
        allow_unsupported: permit TIDAL together with a reverse term.

    Attributes:
        part_names: names of the parts of an output.

    Raises:
        InvalidInputError: when there is no term, when chunk and position terms are mixed, or when TIDAL meets
            a reverse term.
    """

    def __init__(
        self,
        terms: Sequence[ObjectiveTerm],
        noise: NoiseSchedule,
        *,
        slice_size: int | None = None,
        keep_bytes: int | None = None,
        allow_unsupported: bool = False,
    ) -> None:
        if not terms:
            raise InvalidInputError("an objective needs at least one term", param="objective")
        is_cross = any(isinstance(term, ChunkTerm) for term in terms)
        pipeline = Pipeline.CROSS_TOKENIZER if is_cross else Pipeline.SHARED_TOKENIZER
        check_terms(tuple(terms), pipeline, allow_unsupported=allow_unsupported)
        self._terms = weighted_terms(terms)
        self.part_names = term_names(terms)
        self._noise = noise
        self._slice_size = slice_size
        self._keep_bytes = keep_bytes

    def loss(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """The micro-batch's share of the step's loss.

        Raises:
            ShapeError: when the inputs do not fit together.
            InvalidInputError: when a term lacks the scores or counts that it needs.
            NonFiniteError: when a logit, a score or a term is NaN or infinite.
        """
        _require_inputs(inputs)
        # The sum of nothing still hangs on the student, so that a batch without a mask can be differentiated.
        total = inputs.student_hidden.sum(dtype=torch.float32) * 0.0
        read = self._read(inputs)
        parts: dict[str, Tensor] = {}
        for number, (name, term) in enumerate(zip(self.part_names, self._terms, strict=True)):
            value = self._term(number, term, inputs, read)
            parts[name] = value.detach()
            total = total + term.weight * value
        _require_finite_parts(parts)
        return ObjectiveOutput(total, parts)

    def _read(self, inputs: ObjectiveInputs) -> Readings:
        """What all terms need of the LM head, in one pass."""
        wanted: dict[int | str, Statistic] = {}
        if any(isinstance(term, CrossEntropyTerm | ChunkTerm) for term in self._terms):
            wanted[TOKENS] = TargetLogProbs(inputs.target_ids)
        boundaries = _boundaries(self._terms, inputs)
        if boundaries is not None:
            wanted[BOUNDARIES] = boundaries
        for number, term in enumerate(self._terms):
            if isinstance(term, PositionTerm):
                wanted[number] = self._position_statistic(term, inputs)
        values = statistics_of(
            inputs.student_hidden,
            inputs.student_head,
            list(wanted.values()),
            slice_size=self._slice_size,
            keep_bytes=self._keep_bytes,
        )
        return dict(zip(wanted, values, strict=True))

    def _position_statistic(self, term: PositionTerm, inputs: ObjectiveInputs) -> Statistic:
        match inputs.teacher:
            case HiddenScores() as teacher:
                return _exact_statistic(term, inputs, teacher)
            case TopKScores() as teacher:
                rows = teacher.aligned_masked_index
                own = tail_candidates(
                    inputs.student_hidden[rows],
                    inputs.student_head,
                    teacher.ids,
                    shared_vocab=teacher.shared_vocab,
                    slice_size=self._slice_size,
                )
                return BucketLogProbs(
                    torch.cat([teacher.ids.to(own.dtype), own], dim=1),
                    temperature=term.temperature,
                    shared_vocab=teacher.shared_vocab,
                    rows=rows,
                )
            case _:
                raise _missing_scores(term.type, "HiddenScores or TopKScores")

    def _term(self, number: int, term: ObjectiveTerm, inputs: ObjectiveInputs, read: Readings) -> Tensor:
        if isinstance(term, PositionTerm):
            return _position_term(term, inputs, read[number])
        if isinstance(term, CrossEntropyTerm):
            return _cross_entropy_term(term, inputs, read[TOKENS], self._noise)
        return _chunk_term(term, inputs, read)


def _exact_statistic(term: PositionTerm, inputs: ObjectiveInputs, teacher: HiddenScores) -> Statistic:
    operands = (teacher.hidden.to(teacher.head.dtype), teacher.head)
    temperature, shared, rows = term.temperature, teacher.shared_vocab, teacher.aligned_masked_index
    match term:
        case ForwardKLTerm():
            return TidalDivergence(*operands, None, temperature=temperature, shared_vocab=shared, rows=rows)
        case ReverseKLTerm():
            return ReverseDivergence(*operands, temperature=temperature, shared_vocab=shared, rows=rows)
        case TidalTerm():
            share = _at_aligned(scheduled_lambda(term.schedule, inputs.progress, inputs.t), inputs, teacher)
            return TidalDivergence(*operands, share, temperature=temperature, shared_vocab=shared, rows=rows)


def _boundaries(terms: Sequence[ObjectiveTerm], inputs: ObjectiveInputs) -> Statistic | None:
    """The student's boundary after each chunk whose next token is masked, if a term asks for it."""
    teacher = inputs.teacher
    is_wanted = any(
        isinstance(term, ChunkTerm) and term.chunk_filter is not None and term.chunk_filter.debias
        for term in terms
    )
    if not is_wanted or not isinstance(teacher, ChunkScores) or teacher.boundaries is None:
        return None  # a term that misses its scores says so itself
    place = teacher.boundaries.student_next
    return BoundaryLogProbs(teacher.boundaries.begins_pretoken, rows=place[place >= 0])


def _position_term(term: PositionTerm, inputs: ObjectiveInputs, read: Tensor) -> Tensor:
    teacher = inputs.teacher
    assert isinstance(teacher, HiddenScores | TopKScores)
    divergence = (
        read if isinstance(teacher, HiddenScores) else _sparse_divergence(term, inputs, teacher, read)
    )
    if isinstance(term, TidalTerm):
        weight = timestep_weight(inputs.t, term.timestep_weight)
        divergence = divergence * _at_aligned(weight, inputs, teacher)
    return divergence.sum() / max(1, inputs.normalisers.masked_positions)


def _sparse_divergence(
    term: PositionTerm, inputs: ObjectiveInputs, teacher: TopKScores, student: Tensor
) -> Tensor:
    known = teacher.at(term.temperature)
    scores = (student, known.log_probs, known.log_tail)
    match term:
        case ForwardKLTerm():
            return sparse_forward_kl(*scores, temperature=term.temperature)
        case ReverseKLTerm():
            return sparse_reverse_kl(*scores, temperature=term.temperature)
        case TidalTerm():
            share = _at_aligned(scheduled_lambda(term.schedule, inputs.progress, inputs.t), inputs, teacher)
            return sparse_tidal_kl(*scores, share, temperature=term.temperature)


def _cross_entropy_term(
    term: CrossEntropyTerm, inputs: ObjectiveInputs, token_lp: Tensor, noise: NoiseSchedule
) -> Tensor:
    weighted = -token_lp * noise.weight(inputs.t)[inputs.masked_row]
    counts = inputs.normalisers
    match term.normalisation:
        case "token":
            return weighted.sum() / max(1, counts.maskable_tokens)
        case "sequence":
            if inputs.row_maskable is None:
                raise _missing_count("row_maskable", term.normalisation)
            share = weighted / inputs.row_maskable.clamp(min=1)[inputs.masked_row]
            return share.sum() / _sequences(counts, term.normalisation)
        case "batch":
            return weighted.sum() / _sequences(counts, term.normalisation)


def _chunk_term(term: AnyChunkTerm, inputs: ObjectiveInputs, read: Readings) -> Tensor:
    """Filtered chunks add nothing; the mean is still over all active ones, whose number all trainers know."""
    teacher = inputs.teacher
    if not isinstance(teacher, ChunkScores):
        raise _missing_scores(term.type, "ChunkScores")
    if teacher.masked_chunk.shape != inputs.masked_row.shape:
        raise ShapeError(
            f"masked_chunk names {teacher.masked_chunk.shape[0]} positions, the student has "
            f"{inputs.masked_row.shape[0]}",
            param="teacher.masked_chunk",
        )
    require_ids("teacher.chunk_row", teacher.chunk_row, inputs.t.shape[0])
    n_chunks = teacher.log_probs.shape[0]
    student_lp = chunk_log_probs(read[TOKENS][None], teacher.masked_chunk[None], n_chunks)[0]
    scores, row = (student_lp, teacher.log_probs.to(student_lp.dtype)), teacher.chunk_row
    if term.chunk_filter is not None:
        scores, row = _filter_chunks(term.chunk_filter, scores, teacher, read)
    return _chunk_values(term, scores, row, inputs).sum() / max(1, inputs.normalisers.active_chunks)


def _chunk_values(
    term: AnyChunkTerm, scores: tuple[Tensor, Tensor], row: Tensor, inputs: ObjectiveInputs
) -> Tensor:
    """The term's value of each chunk, from the student's and the teacher's ``LP``; `row` is the chunks'."""
    temperature, floor = term.temperature, term.probability_floor
    match term:
        case CalmTerm():
            return forward_calm(*scores, temperature=temperature, floor=floor)
        case TidalCalmTerm():
            share = scheduled_lambda(term.schedule, inputs.progress, inputs.t)[row]
            weight = timestep_weight(inputs.t, term.timestep_weight)[row]
            return weight * tidal_calm(*scores, share, temperature=temperature, floor=floor)
        case ReverseCalmTerm():
            return reverse_calm(*scores, temperature=temperature, floor=floor)
        case ReverseBernoulliKLTerm():
            return reverse_bernoulli_kl(*scores, temperature=temperature, floor=floor)


def _filter_chunks(
    options: ChunkFilter,
    scores: tuple[Tensor, Tensor],
    teacher: ChunkScores,
    read: Readings,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Student's and teacher's ``LP`` of the chunks that pass the filter, debiased if asked; their rows."""
    boundaries = teacher.boundaries
    if boundaries is None:
        raise InvalidInputError(
            "a term with a chunk_filter needs the teacher's boundaries (ChunkScores.boundaries)",
            param="teacher.boundaries",
        )
    student_lp, teacher_lp = scores
    kept = keep_chunks(boundaries.teacher_log_probs, options.threshold).nonzero()[:, 0]
    student_lp, teacher_lp, row = student_lp[kept], teacher_lp[kept], teacher.chunk_row[kept]
    if not options.debias:
        return (student_lp, teacher_lp), row
    own = boundaries.visible_log_probs.to(student_lp.dtype)
    own = own.masked_scatter(boundaries.student_next >= 0, read[BOUNDARIES])[kept]
    theirs = boundaries.teacher_log_probs[kept].to(teacher_lp.dtype)
    return (debias(student_lp, own), debias(teacher_lp, theirs)), row


def _at_aligned(per_row: Tensor, inputs: ObjectiveInputs, teacher: HiddenScores | TopKScores) -> Tensor:
    return per_row[inputs.masked_row[teacher.aligned_masked_index]]


def _sequences(normalisers: Normalisers, normalisation: str) -> int:
    if normalisers.sequences < 1:
        raise _missing_count("normalisers.sequences", normalisation)
    return normalisers.sequences


def _require_inputs(inputs: ObjectiveInputs) -> None:
    masked = inputs.student_hidden.shape[0]
    for name, tensor in (("target_ids", inputs.target_ids), ("masked_row", inputs.masked_row)):
        if tensor.shape != (masked,):
            raise ShapeError(f"{name} has shape {tuple(tensor.shape)}, expected ({masked},)", param=name)
    require_ids("masked_row", inputs.masked_row, inputs.t.shape[0])
    teacher = inputs.teacher
    if isinstance(teacher, HiddenScores | TopKScores):
        require_ids("teacher.aligned_masked_index", teacher.aligned_masked_index, masked)


def _require_finite_parts(parts: dict[str, Tensor]) -> None:
    # One transfer from the device for all terms.
    if not parts or bool(torch.isfinite(torch.stack(list(parts.values()))).all()):
        return
    names = [name for name, value in parts.items() if not bool(torch.isfinite(value))]
    raise NonFiniteError(f"the loss is not finite in: {', '.join(names)}", param=names[0])


def _missing_scores(kind: str, needed: str) -> InvalidInputError:
    return InvalidInputError(f"the term '{kind}' needs the teacher's scores as {needed}", param="teacher")


def _missing_count(name: str, normalisation: str) -> InvalidInputError:
    return InvalidInputError(f"the '{normalisation}' normalisation of cross-entropy needs {name}", param=name)

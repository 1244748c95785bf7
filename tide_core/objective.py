"""The objective of a step: the weighted sum of its terms on one micro-batch.

``L = sum_k weight_k L_k`` (TIDE, arXiv 2604.26951, "L_CE + weight * L_distill"). A micro-batch returns its
share: every mean is divided by a global count, so that summing the shares over micro-batches and workers
gives the step's loss whatever their number.

Full logits ``[masked, vocab]`` are never held: all terms are computed by the fused linear forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
    TidalSchedule,
    TidalTerm,
    check_terms,
)
from tide_core.losses.calm import (
    chunk_log_probs,
    forward_calm,
    reverse_bernoulli_kl,
    reverse_calm,
    tidal_calm,
)
from tide_core.losses.debiasing import debias, keep_chunks, linear_boundary_log_probs
from tide_core.losses.fused_linear import (
    linear_forward_kl,
    linear_reverse_kl,
    linear_target_log_probs,
    linear_tidal_kl,
)
from tide_core.losses.sparse import (
    TopK,
    linear_bucket_log_probs,
    sparse_forward_kl,
    sparse_reverse_kl,
    sparse_tidal_kl,
    tail_candidates,
)
from tide_core.losses.validation import require_ids
from tide_core.schedules.noise import NoiseSchedule
from tide_core.schedules.tidal import tidal_lambda, timestep_weight


@dataclass(frozen=True)
class Normalisers:
    """Global counts of one optimiser step, summed over all workers and micro-batches.

    Attributes:
        maskable_tokens: tokens whose label is not -100; divides the cross-entropy.
        masked_positions: masked student positions; divides the position terms.
        active_chunks: active chunks; divides the chunk terms.
        sequences: sequences of the step; needed by the "sequence" and "batch" normalisations only.
    """

    maskable_tokens: int
    masked_positions: int
    active_chunks: int = 0
    sequences: int = 0


@dataclass(frozen=True)
class ChunkBoundaries:
    """Whether a pre-token boundary follows each active chunk (ALM), on both sides.

    Attributes:
        teacher_log_probs: the teacher's log-probability of a boundary after the chunk.
        student_next: which masked student position follows the chunk, -1 where the next token is visible.
        visible_log_probs: the student's log-probability where the next token is visible: it is known.
        begins_pretoken: which ids of the student's vocabulary begin a pre-token.
    """

    teacher_log_probs: Float[Tensor, " chunk"]
    student_next: Int[Tensor, " chunk"]
    visible_log_probs: Float[Tensor, " chunk"]
    begins_pretoken: Bool[Tensor, " vocab"]


@dataclass(frozen=True)
class ChunkScores:
    """What a teacher says about the active chunks of a micro-batch (pipeline A).

    Attributes:
        log_probs: ``LP_T`` of each active chunk, the sum of its teacher tokens' log-probabilities.
        masked_chunk: active chunk of each masked student position, -1 for positions of none.
        chunk_row: batch row of each active chunk.
        boundaries: what follows each chunk; needed by terms with a chunk filter only.
    """

    log_probs: Float[Tensor, " chunk"]
    masked_chunk: Int[Tensor, " masked"]
    chunk_row: Int[Tensor, " chunk"]
    boundaries: ChunkBoundaries | None = None


@dataclass(frozen=True)
class HiddenScores:
    """A teacher's final hidden states, with its frozen LM head (pipeline B, exact).

    Attributes:
        hidden: at the masked positions that the teacher sees.
        head: the teacher's LM head weight.
        aligned_masked_index: which of the micro-batch's masked positions each row of ``hidden`` belongs to.
        shared_vocab: ids below this mean the same to both models; divergences run over them.
    """

    hidden: Float[Tensor, "aligned teacher_hidden"]
    head: Float[Tensor, "teacher_vocab teacher_hidden"]
    aligned_masked_index: Int[Tensor, " aligned"]
    shared_vocab: int


@dataclass(frozen=True)
class TopKScores:
    """A teacher's most likely tokens and the mass of all others (pipeline B, approximate).

    Attributes:
        ids: the most likely ids below ``shared_vocab``, distinct in each row, likeliest first.
        logits: their logits, up to a constant of each row.
        log_tails: ``log sum exp(logit / T)`` over all other ids of the shared vocabulary, less the same
            constant over T, for each temperature (may be -inf).
        temperatures: those of ``log_tails``; every term's must be among them.
        aligned_masked_index: as in :class:`HiddenScores`.
        shared_vocab: as in :class:`HiddenScores`.
    """

    ids: Int[Tensor, "aligned topk"]
    logits: Float[Tensor, "aligned topk"]
    log_tails: Float[Tensor, "aligned temperature"]
    temperatures: tuple[float, ...]
    aligned_masked_index: Int[Tensor, " aligned"]
    shared_vocab: int

    def at(self, temperature: float) -> TopK:
        """The ids' log-probabilities and the tail's at one temperature; together they sum to 1.

        Raises:
            InvalidInputError: the teacher was not asked at this temperature.
        """
        if temperature not in self.temperatures:
            raise InvalidInputError(
                f"the teacher's top-k scores are at the temperatures {self.temperatures}, a term needs "
                f"{temperature}; ask the teacher at the term's temperature",
                param="teacher.temperatures",
            )
        tail = self.log_tails[:, self.temperatures.index(temperature)]
        scaled = self.logits / temperature
        total = torch.logaddexp(scaled.logsumexp(dim=1), tail)
        return TopK(self.ids, scaled - total[:, None], tail - total)


@dataclass(frozen=True)
class ObjectiveInputs:
    """One micro-batch, reduced to its masked positions.

    Attributes:
        student_hidden: final hidden states at the masked positions, in row-major order over the batch.
        student_head: the student's LM head weight.
        target_ids: the clean token at each masked position.
        masked_row: batch row of each masked position.
        t: diffusion timestep of each row, in (0, 1).
        progress: training progress ``step / max_steps`` in [0, 1].
        normalisers: global counts of the step.
        teacher: the teacher's scores, or None when no term needs them.
        row_maskable: maskable tokens of each row; needed by the "sequence" normalisation only.
        adaptive_progress: TAID's loss-driven progress; needed by schedules with adaptive growth only.
    """

    student_hidden: Float[Tensor, "masked hidden"]
    student_head: Float[Tensor, "vocab hidden"]
    target_ids: Int[Tensor, " masked"]
    masked_row: Int[Tensor, " masked"]
    t: Float[Tensor, " batch"]
    progress: float
    normalisers: Normalisers
    teacher: ChunkScores | HiddenScores | TopKScores | None = None
    row_maskable: Int[Tensor, " batch"] | None = None
    adaptive_progress: float | None = None


@dataclass(frozen=True)
class ObjectiveOutput:
    """A micro-batch's share of the step's loss.

    Attributes:
        total: scalar with gradient, the weighted sum of the terms.
        parts: detached scalar of each term before its weight, by the term's type; a second term of the same
            type gets the suffix ``_2``.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]


class Objective:
    """A weighted sum of typed terms.

    Args:
        terms: the terms; those with weight 0 are not computed.
        noise: the noise schedule, for the cross-entropy weight.
        slice_size: largest number of logits held at once; None chooses by device.
        allow_unsupported: permit TIDAL together with a reverse term.

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
        allow_unsupported: bool = False,
    ) -> None:
        if not terms:
            raise InvalidInputError("an objective needs at least one term", param="objective")
        is_cross = any(isinstance(term, ChunkTerm) for term in terms)
        pipeline = Pipeline.CROSS_TOKENIZER if is_cross else Pipeline.SHARED_TOKENIZER
        check_terms(tuple(terms), pipeline, allow_unsupported=allow_unsupported)
        self._terms = tuple(term for term in terms if term.weight > 0)
        self._noise = noise
        self._slice_size = slice_size

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
        token_lp = self._token_log_probs(inputs)
        parts: dict[str, Tensor] = {}
        for term in self._terms:
            value = self._term(term, inputs, token_lp)
            parts[_part_name(term.type, parts)] = value.detach()
            total = total + term.weight * value
        _require_finite_parts(parts)
        return ObjectiveOutput(total, parts)

    def _token_log_probs(self, inputs: ObjectiveInputs) -> Tensor | None:
        """``lp_i`` once for the cross-entropy and all chunk terms, which need nothing else of the student."""
        if not any(isinstance(term, CrossEntropyTerm | ChunkTerm) for term in self._terms):
            return None
        return linear_target_log_probs(
            inputs.student_hidden, inputs.student_head, inputs.target_ids, slice_size=self._slice_size
        )

    def _term(self, term: ObjectiveTerm, inputs: ObjectiveInputs, token_lp: Tensor | None) -> Tensor:
        if isinstance(term, PositionTerm):
            return self._position_term(term, inputs)
        assert token_lp is not None
        if isinstance(term, CrossEntropyTerm):
            return _cross_entropy_term(term, inputs, token_lp, self._noise)
        return _chunk_term(term, inputs, token_lp, self._slice_size)

    def _position_term(self, term: PositionTerm, inputs: ObjectiveInputs) -> Tensor:
        teacher = inputs.teacher
        match teacher:
            case HiddenScores():
                divergence = self._exact_divergence(term, inputs, teacher)
            case TopKScores():
                divergence = self._sparse_divergence(term, inputs, teacher)
            case _:
                raise _missing_scores(term.type, "HiddenScores or TopKScores")
        if isinstance(term, TidalTerm):
            weight = timestep_weight(inputs.t, term.timestep_weight)
            divergence = divergence * _at_aligned(weight, inputs, teacher)
        return divergence.sum() / max(1, inputs.normalisers.masked_positions)

    def _exact_divergence(self, term: PositionTerm, inputs: ObjectiveInputs, teacher: HiddenScores) -> Tensor:
        operands = (
            inputs.student_hidden[teacher.aligned_masked_index],
            inputs.student_head,
            teacher.hidden.to(teacher.head.dtype),
            teacher.head,
        )
        temperature, shared, size = term.temperature, teacher.shared_vocab, self._slice_size
        match term:
            case ForwardKLTerm():
                return linear_forward_kl(
                    *operands, temperature=temperature, shared_vocab=shared, slice_size=size
                )
            case ReverseKLTerm():
                return linear_reverse_kl(
                    *operands, temperature=temperature, shared_vocab=shared, slice_size=size
                )
            case TidalTerm():
                share = _at_aligned(_lambda(term.schedule, inputs), inputs, teacher)
                return linear_tidal_kl(
                    *operands, share, temperature=temperature, shared_vocab=shared, slice_size=size
                )

    def _sparse_divergence(self, term: PositionTerm, inputs: ObjectiveInputs, teacher: TopKScores) -> Tensor:
        known = teacher.at(term.temperature)
        hidden, head = inputs.student_hidden[teacher.aligned_masked_index], inputs.student_head
        shared, size = teacher.shared_vocab, self._slice_size
        own = tail_candidates(hidden, head, teacher.ids, shared_vocab=shared, slice_size=size)
        student = linear_bucket_log_probs(
            hidden,
            head,
            torch.cat([teacher.ids.to(own.dtype), own], dim=1),
            temperature=term.temperature,
            shared_vocab=shared,
            slice_size=size,
        )
        scores = (student, known.log_probs, known.log_tail)
        match term:
            case ForwardKLTerm():
                return sparse_forward_kl(*scores, temperature=term.temperature)
            case ReverseKLTerm():
                return sparse_reverse_kl(*scores, temperature=term.temperature)
            case TidalTerm():
                share = _at_aligned(_lambda(term.schedule, inputs), inputs, teacher)
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


def _chunk_term(
    term: AnyChunkTerm, inputs: ObjectiveInputs, token_lp: Tensor, slice_size: int | None
) -> Tensor:
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
    student_lp = chunk_log_probs(token_lp[None], teacher.masked_chunk[None], n_chunks)[0]
    scores, row = (student_lp, teacher.log_probs.to(student_lp.dtype)), teacher.chunk_row
    if term.chunk_filter is not None:
        scores, row = _filtered(term.chunk_filter, scores, teacher, inputs, slice_size)
    temperature, floor = term.temperature, term.probability_floor
    match term:
        case CalmTerm():
            values = forward_calm(*scores, temperature=temperature, floor=floor)
        case TidalCalmTerm():
            share = _lambda(term.schedule, inputs)[row]
            weight = timestep_weight(inputs.t, term.timestep_weight)[row]
            values = weight * tidal_calm(*scores, share, temperature=temperature, floor=floor)
        case ReverseCalmTerm():
            values = reverse_calm(*scores, temperature=temperature, floor=floor)
        case ReverseBernoulliKLTerm():
            values = reverse_bernoulli_kl(*scores, temperature=temperature, floor=floor)
    return values.sum() / max(1, inputs.normalisers.active_chunks)


def _filtered(
    options: ChunkFilter,
    scores: tuple[Tensor, Tensor],
    teacher: ChunkScores,
    inputs: ObjectiveInputs,
    slice_size: int | None,
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
    own = boundaries.visible_log_probs[kept].to(student_lp.dtype)
    place = boundaries.student_next[kept]
    is_masked = place >= 0
    if bool(is_masked.any()):
        masked = linear_boundary_log_probs(
            inputs.student_hidden[place[is_masked]],
            inputs.student_head,
            boundaries.begins_pretoken,
            slice_size=slice_size,
        )
        own = own.masked_scatter(is_masked, masked)
    theirs = boundaries.teacher_log_probs[kept].to(teacher_lp.dtype)
    return (debias(student_lp, own), debias(teacher_lp, theirs)), row


def _lambda(schedule: TidalSchedule, inputs: ObjectiveInputs) -> Tensor:
    """``lambda_t`` of each row. Adaptive growth is TAID's: the loss-driven progress, taken as it is."""
    progress, growth = inputs.progress, schedule.growth
    if growth == "adaptive":
        if inputs.adaptive_progress is None:
            raise InvalidInputError(
                "a schedule with adaptive growth needs ObjectiveInputs.adaptive_progress",
                param="adaptive_progress",
            )
        progress, growth = inputs.adaptive_progress, "linear"
    return tidal_lambda(
        progress,
        inputs.t,
        lambda_init=schedule.lambda_init,
        lambda_max=schedule.lambda_max,
        growth=growth,
        axes=schedule.axes,
    )


def _at_aligned(per_row: Tensor, inputs: ObjectiveInputs, teacher: HiddenScores | TopKScores) -> Tensor:
    return per_row[inputs.masked_row[teacher.aligned_masked_index]]


def _sequences(normalisers: Normalisers, normalisation: str) -> int:
    if normalisers.sequences < 1:
        raise _missing_count("normalisers.sequences", normalisation)
    return normalisers.sequences


def _part_name(kind: str, parts: dict[str, Tensor]) -> str:
    name, number = kind, 1
    while name in parts:
        number += 1
        name = f"{kind}_{number}"
    return name


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

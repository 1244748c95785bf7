"""The terms of a distillation objective, and the named variants that expand to them.

A job's objective is a sum of typed terms, ``sum_k weight_k * term_k``. Each term is one class below; the
field ``type`` tells them apart (a discriminated union), so there are no mode strings to combine.

A new term touches, in this order:

1. this module: its class, its place in `PositionTerm` or `AnyChunkTerm`, and in `REVERSE_TERMS` or
   `TIDAL_TERMS` where it is one;
2. `tide_core/losses`: its formula, a pure function, with an oracle in `tests/tide_core/losses`;
3. `tide_core/objective/objective.py`: its `case` (mypy names the places, and
   `tests/tide_core/objective/test_objective.py` computes every term);
4. `tools/job_spec_page.py`, run again: its row in `docs/job-spec.md`; and `docs/openapi.json`.

`tests/tide_core/contracts/test_objective_terms.py` holds the list.

Source: TIDE (arXiv 2604.26951); TAID (2501.16937) for the growing interpolation; ALM (2503.20083) for chunk
likelihoods. Variant table: TIDE, sections on pipelines A (cross-tokenizer) and B (shared tokenizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from tide_core.contracts.base import Contract
from tide_core.contracts.errors import InvalidInputError


class Pipeline(StrEnum):
    """How positions of the student and the teacher correspond."""

    CROSS_TOKENIZER = "cross_tokenizer"
    """Pipeline A: different tokenizers, compared by the likelihood of byte-aligned chunks."""
    SHARED_TOKENIZER = "shared_tokenizer"
    """Pipeline B: one tokenizer, compared position by position over the shared vocabulary."""


class Variant(StrEnum):
    """The named objectives of the TIDE paper; what each expands to depends on the pipeline."""

    NONE = "none"
    BASELINE = "baseline"
    TIDE_CROSS = "tide_cross"
    TIDE_SHARED = "tide_shared"


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
ProbabilityFloor = Annotated[float, Field(ge=0, lt=0.5)]


class TidalSchedule(Contract):
    """How far the target leans from the student to the teacher: ``lambda_t`` (TIDE, TIDAL)."""

    lambda_init: float = Field(default=0.1, ge=0, le=1)
    """Interpolation at the start of training."""
    lambda_max: float = Field(default=0.9, ge=0, le=1)
    """Interpolation at the end of training."""
    growth: Literal["cosine", "linear", "adaptive"] = "cosine"
    """How lambda grows with training progress; ``adaptive`` is TAID's loss-driven progress."""
    axes: Literal["both", "training", "timestep"] = "both"
    """Whether lambda depends on training progress, on the diffusion timestep, or on both."""


class CrossEntropyTerm(Contract):
    """The student's own masked-diffusion loss (BD3LM, MDLM)."""

    type: Literal["cross_entropy"] = "cross_entropy"
    weight: Weight = 1.0
    normalisation: Literal["token", "sequence", "batch"] = "token"


class ForwardKLTerm(Contract):
    """``KL(teacher || student)`` at masked positions, times T^2."""

    type: Literal["forward_kl"] = "forward_kl"
    weight: Weight = 1.0
    temperature: Temperature = 2.0


class ReverseKLTerm(Contract):
    """``KL(student || teacher)`` at masked positions, times T^2."""

    type: Literal["reverse_kl"] = "reverse_kl"
    weight: Weight = 1.0
    temperature: Temperature = 2.0


class TidalTerm(Contract):
    """KL towards a target between student and teacher that moves with training and timestep."""

    type: Literal["tidal"] = "tidal"
    weight: Weight = 1.0
    temperature: Temperature = 2.0
    schedule: TidalSchedule = TidalSchedule()
    timestep_weight: Literal["uniform", "midrange"] = "midrange"


class ChunkFilter(Contract):
    """ALM's options: a chunk counts as "it occurs, and a pre-token boundary follows"."""

    debias: bool = True
    """Multiply each side's chunk likelihood by its own probability that a boundary follows."""
    threshold: float = Field(default=0.1, ge=0, le=1)
    """Chunks after which the teacher expects a boundary with less than this are left out (gamma in ALM)."""


class ChunkTerm(Contract):
    """What the chunk-likelihood terms have in common."""

    weight: Weight = 1.0
    temperature: Temperature = 5.0
    """5.0 is what produced the paper's pipeline A results; its defaults say 2.0."""
    probability_floor: ProbabilityFloor = 1e-7
    """Chunk probabilities are kept in [floor, 1 - floor]; 0 works in log space without a floor."""
    chunk_filter: ChunkFilter | None = None
    """ALM's outcome debiasing and chunk filter; none: every active chunk counts as it is."""


class CalmTerm(ChunkTerm):
    """Forward CALM: Bernoulli cross-entropy of chunk likelihoods, teacher as the target."""

    type: Literal["calm"] = "calm"


class TidalCalmTerm(ChunkTerm):
    """CALM with TIDAL's moving target in the place of the teacher's chunk probability."""

    type: Literal["tidal_calm"] = "tidal_calm"
    schedule: TidalSchedule = TidalSchedule()
    timestep_weight: Literal["uniform", "midrange"] = "uniform"


class ReverseCalmTerm(ChunkTerm):
    """Reverse CALM: the student's chunk probability weighs the teacher's log-probabilities."""

    type: Literal["reverse_calm"] = "reverse_calm"


class ReverseBernoulliKLTerm(ChunkTerm):
    """Reverse CALM minus the student's entropy: the true ``KL(p_S || p_T)`` per chunk (ours)."""

    type: Literal["reverse_bernoulli_kl"] = "reverse_bernoulli_kl"


PositionTerm = ForwardKLTerm | ReverseKLTerm | TidalTerm
"""Terms over the shared vocabulary, position by position (pipeline B)."""
AnyChunkTerm = CalmTerm | TidalCalmTerm | ReverseCalmTerm | ReverseBernoulliKLTerm
"""Terms over chunk likelihoods (pipeline A)."""
ObjectiveTerm = Annotated[CrossEntropyTerm | PositionTerm | AnyChunkTerm, Field(discriminator="type")]

REVERSE_TERMS = (ReverseKLTerm, ReverseCalmTerm, ReverseBernoulliKLTerm)
TIDAL_TERMS = (TidalTerm, TidalCalmTerm)


class FullContext(Contract):
    """The teacher sees every visible token of the student's corruption and is read at all masked ones."""

    type: Literal["full"] = "full"


class CompDemoContext(Contract):
    """Complementary demonstration: the masked set is split, each half is read with the other revealed."""

    type: Literal["comp_demo"] = "comp_demo"
    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Probability (rho) that a masked position or chunk falls into the first half."""


TeacherContext = Annotated[FullContext | CompDemoContext, Field(discriminator="type")]


def expand_variant(
    variant: Variant, pipeline: Pipeline
) -> tuple[tuple[ObjectiveTerm, ...], FullContext | CompDemoContext]:
    """The terms and the teacher context that a named variant stands for.

    Source: TIDE's table of variants. ``tide_cross`` is the best of pipeline A, ``tide_shared`` of B; both
    names are defined in both pipelines.
    """
    cross = pipeline is Pipeline.CROSS_TOKENIZER
    ce = CrossEntropyTerm()
    match variant:
        case Variant.NONE:
            return (ce,), FullContext()
        case Variant.BASELINE:
            return (ce, CalmTerm() if cross else ForwardKLTerm()), FullContext()
        case Variant.TIDE_CROSS:
            return (ce, ReverseCalmTerm() if cross else ReverseKLTerm()), FullContext()
        case Variant.TIDE_SHARED:
            return (ce, TidalCalmTerm() if cross else TidalTerm()), CompDemoContext()


def check_terms(
    terms: tuple[ObjectiveTerm, ...], pipeline: Pipeline, *, allow_unsupported: bool = False
) -> None:
    """Refuse sums of terms that mean nothing in this pipeline or that the method does not support.

    Raises:
        InvalidInputError: ``objective_pipeline_mismatch`` or ``tidal_with_reverse``.
    """
    wrong = AnyChunkTerm if pipeline is Pipeline.SHARED_TOKENIZER else PositionTerm
    for number, term in enumerate(terms):
        if isinstance(term, wrong):
            raise InvalidInputError(
                f"The term '{term.type}' does not exist in the pipeline '{pipeline}': chunk terms need "
                "'cross_tokenizer', position terms need 'shared_tokenizer'. Choose a term of this pipeline "
                "or a named variant.",
                code="objective_pipeline_mismatch",
                param=f"objective.{number}.type",
            )
    has_reverse = any(isinstance(term, REVERSE_TERMS) for term in terms)
    has_tidal = any(isinstance(term, TIDAL_TERMS) for term in terms)
    if has_reverse and has_tidal and not allow_unsupported:
        raise InvalidInputError(
            "TIDAL is defined for forward objectives only; remove the reverse term or the TIDAL term, or set "
            "'allow_unsupported' to run the combination as an experiment.",
            code="tidal_with_reverse",
            param="objective",
        )


def weighted_terms(terms: Sequence[ObjectiveTerm]) -> tuple[ObjectiveTerm, ...]:
    """The terms that are computed: those with a weight above zero, in their order."""
    return tuple(term for term in terms if term.weight > 0)


def term_names(terms: Sequence[ObjectiveTerm]) -> tuple[str, ...]:
    """A name for each of the weighted terms, in their order, as losses are reported and drawn under.

    The name is the term's type; a second term of one type has the suffix ``_2``, a third ``_3``.
    """
    types = [term.type for term in weighted_terms(terms)]
    counts = [types[: place + 1].count(kind) for place, kind in enumerate(types)]
    return tuple(kind if count == 1 else f"{kind}_{count}" for kind, count in zip(types, counts, strict=True))


def filters_chunks(terms: tuple[ObjectiveTerm, ...]) -> bool:
    """Whether any term asks where pre-tokens begin."""
    return any(isinstance(term, ChunkTerm) and term.weight > 0 and term.chunk_filter for term in terms)


def temperatures(terms: tuple[ObjectiveTerm, ...]) -> tuple[float, ...]:
    """The different temperatures of the position terms, in rising order."""
    return tuple(sorted({term.temperature for term in terms if isinstance(term, PositionTerm)}))


def needs_teacher(terms: tuple[ObjectiveTerm, ...]) -> bool:
    """Whether any term with a weight above zero asks the teacher for scores during training."""
    return any(not isinstance(term, CrossEntropyTerm) and term.weight > 0 for term in terms)

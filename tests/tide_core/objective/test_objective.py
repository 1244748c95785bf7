"""The objective against plain loops over positions and chunks, and its invariance to how work is split."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from tide_core.contracts.errors import InvalidInputError, NonFiniteError, ShapeError
from tide_core.contracts.objective import (
    AnyChunkTerm,
    CalmTerm,
    ChunkFilter,
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
    Variant,
    expand_variant,
)
from tide_core.losses.sparse import top_k_of_logits
from tide_core.objective.inputs import (
    ChunkBoundaries,
    ChunkScores,
    HiddenScores,
    Normalisers,
    ObjectiveInputs,
    TopKScores,
)
from tide_core.objective.objective import Objective
from tide_core.schedules.noise import CosineNoise, LinearNoise
from tide_core.schedules.tidal import TrainingProgress

ROWS, HIDDEN, VOCAB, TEACHER_HIDDEN, TEACHER_VOCAB, SHARED = 3, 6, 21, 4, 25, 18
PER_ROW = (5, 0, 4)  # the second sequence happens to have no masked token
CHUNKS_OF_ROW = (2, 0, 3)
MASKED_CHUNK = (0, 0, -1, 1, 1, 2, 3, 4, 4)


class Step:
    """A whole step's inputs in float64, from which micro-batches are cut."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        masked = sum(PER_ROW)
        self.hidden = draw(masked, HIDDEN).requires_grad_()
        self.head = draw(VOCAB, HIDDEN).requires_grad_()
        self.targets = torch.randint(0, VOCAB, (masked,), generator=generator)
        self.rows = torch.repeat_interleave(torch.arange(ROWS), torch.tensor(PER_ROW))
        self.t = torch.tensor([0.3, 0.8, 0.55], dtype=torch.float64)
        self.maskable = torch.tensor([9, 4, 7])
        self.counts = Normalisers(maskable_tokens=20, masked_positions=masked, active_chunks=5, sequences=3)
        self.chunk_lp = -draw(5).abs() * 3
        self.chunk_rows = torch.repeat_interleave(torch.arange(ROWS), torch.tensor(CHUNKS_OF_ROW))
        self.masked_chunk = torch.tensor(MASKED_CHUNK)
        # Positions 2 and 6 are end-of-sequence padding: the teacher does not see them.
        self.aligned = torch.tensor([0, 1, 3, 4, 5, 7, 8])
        self.teacher_hidden = draw(7, TEACHER_HIDDEN)
        self.teacher_head = draw(TEACHER_VOCAB, TEACHER_HIDDEN)

    def teacher_logits(self) -> Tensor:
        return (self.teacher_hidden @ self.teacher_head.T)[:, :SHARED]

    def scores(self, kind: str, temperature: float = 2.0) -> ChunkScores | HiddenScores | TopKScores | None:
        match kind:
            case "chunks":
                return ChunkScores(self.chunk_lp, self.masked_chunk, self.chunk_rows)
            case "hidden":
                return HiddenScores(self.teacher_hidden, self.teacher_head, self.aligned, SHARED)
            case "top_k":
                top = top_k_of_logits(self.teacher_logits(), SHARED, temperature=temperature)
                shift = 3.0  # logits come up to a constant
                logits, tails = (
                    top.log_probs * temperature - shift,
                    top.log_tail[:, None] - shift / temperature,
                )
                return TopKScores(top.ids, logits, tails, (temperature,), self.aligned, SHARED)
            case _:
                return None

    def inputs(self, kind: str = "none", progress: float = 0.4) -> ObjectiveInputs:
        return ObjectiveInputs(
            student_hidden=self.hidden,
            student_head=self.head,
            target_ids=self.targets,
            masked_row=self.rows,
            t=self.t,
            progress=TrainingProgress(progress, 0.7),
            normalisers=self.counts,
            teacher=self.scores(kind),
            row_maskable=self.maskable,
        )

    def only_row(self, row: int, kind: str) -> ObjectiveInputs:
        """The micro-batch that holds one sequence, with the whole step's counts."""
        inputs = self.inputs(kind)
        is_here = self.rows == row
        teacher = inputs.teacher
        if isinstance(teacher, ChunkScores):
            has_chunk = self.chunk_rows == row
            first = int((self.chunk_rows < row).sum())
            chunk = torch.where(self.masked_chunk < 0, -1, self.masked_chunk - first)[is_here]
            teacher = ChunkScores(self.chunk_lp[has_chunk], chunk, self.chunk_rows[has_chunk] * 0)
        elif isinstance(teacher, HiddenScores):
            wanted = is_here[self.aligned]
            moved = self.aligned[wanted] - int((self.rows < row).sum())
            teacher = replace(teacher, hidden=teacher.hidden[wanted], aligned_masked_index=moved)
        return replace(
            inputs,
            student_hidden=self.hidden[is_here],
            target_ids=self.targets[is_here],
            masked_row=self.rows[is_here] * 0,
            t=self.t[row : row + 1],
            teacher=teacher,
            row_maskable=self.maskable[row : row + 1],
        )


# The oracle: plain numbers -------------------------------------------------------------------------------


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def token_lp(step: Step) -> list[float]:
    logits = (step.hidden @ step.head.T).tolist()
    return [math.log(softmax(row)[x]) for row, x in zip(logits, step.targets.tolist(), strict=True)]


def share(t: float, schedule: TidalSchedule, progress: float = 0.4) -> float:
    growth = {
        "cosine": (1 - math.cos(math.pi * progress)) / 2,
        "linear": progress,
        "adaptive": 0.7,
    }[schedule.growth]
    trained = schedule.lambda_init + (schedule.lambda_max - schedule.lambda_init) * growth
    return {
        "both": trained * (1 - t),
        "training": trained,
        "timestep": schedule.lambda_max * (1 - t),
    }[schedule.axes]


def bump(t: float, kind: str) -> float:
    return math.exp(-((t - 0.5) ** 2) / 0.045) if kind == "midrange" else 1.0


def expected_cross_entropy(step: Step, term: CrossEntropyTerm) -> float:
    total = 0.0
    for lp, row in zip(token_lp(step), step.rows.tolist(), strict=True):
        divisor = {"token": 20.0, "sequence": 3.0 * float(step.maskable[row]), "batch": 3.0}
        total += -lp / float(step.t[row]) / divisor[term.normalisation]
    return total


def chunk_value(term: ObjectiveTerm, lp_student: float, lp_teacher: float, t: float) -> float:
    assert isinstance(term, CalmTerm | TidalCalmTerm | ReverseCalmTerm | ReverseBernoulliKLTerm)
    p_s, p_t = (min(max(math.exp(lp / term.temperature), 1e-7), 1 - 1e-7) for lp in (lp_student, lp_teacher))
    match term:
        case CalmTerm():
            return -(p_t * math.log(p_s) + (1 - p_t) * math.log(1 - p_s))
        case TidalCalmTerm():
            mix = (1 - share(t, term.schedule)) * p_s + share(t, term.schedule) * p_t
            return -(mix * math.log(p_s) + (1 - mix) * math.log(1 - p_s)) * bump(t, term.timestep_weight)
        case ReverseCalmTerm():
            return -(p_s * math.log(p_t) + (1 - p_s) * math.log(1 - p_t))
        case ReverseBernoulliKLTerm():
            return kl([p_s, 1 - p_s], [p_t, 1 - p_t])


def student_chunk_lp(step: Step, chunk: int) -> float:
    return math.fsum(lp for lp, mine in zip(token_lp(step), MASKED_CHUNK, strict=True) if mine == chunk)


def expected_chunk_term(step: Step, term: ObjectiveTerm) -> float:
    pairs = enumerate(zip(step.chunk_lp.tolist(), step.chunk_rows.tolist(), strict=True))
    return sum(
        chunk_value(term, student_chunk_lp(step, chunk), lp_teacher, float(step.t[row])) / 5.0
        for chunk, (lp_teacher, row) in pairs
    )


BOUNDARY = [0.9, 0.05, 0.5, 1.0, 0.2]
"""The teacher's probability of a boundary after each chunk."""
NEXT = [-1, 3, 4, -1, 8]
"""The masked student position after each chunk."""
VISIBLE = [-0.7, 0.0, 0.0, -16.0, 0.0]


def boundaries(step: Step, teacher: list[float] = BOUNDARY) -> ChunkBoundaries:
    return ChunkBoundaries(
        torch.tensor(teacher, dtype=torch.float64).log(),
        torch.tensor(NEXT),
        torch.tensor(VISIBLE, dtype=torch.float64),
        torch.arange(VOCAB) % 3 == 0,
    )


def with_boundaries(step: Step, found: ChunkBoundaries) -> ObjectiveInputs:
    scores = step.scores("chunks")
    assert isinstance(scores, ChunkScores)
    return replace(step.inputs("chunks"), teacher=replace(scores, boundaries=found))


def expected_filtered_term(step: Step, term: ObjectiveTerm, kept: list[int], *, debias: bool) -> float:
    total = 0.0
    for chunk in kept:
        lp_student, lp_teacher = student_chunk_lp(step, chunk), float(step.chunk_lp[chunk])
        if debias:
            lp_teacher += math.log(BOUNDARY[chunk])
            lp_student += VISIBLE[chunk]
            if NEXT[chunk] >= 0:
                following = softmax((step.hidden[NEXT[chunk]] @ step.head.T).tolist())
                lp_student += math.log(math.fsum(following[::3])) - VISIBLE[chunk]
        t = float(step.t[int(step.chunk_rows[chunk])])
        total += chunk_value(term, lp_student, lp_teacher, t) / 5.0
    return total


def expected_position_term(step: Step, term: ObjectiveTerm) -> float:
    assert isinstance(term, ForwardKLTerm | ReverseKLTerm | TidalTerm)
    student = (step.hidden @ step.head.T)[:, :SHARED].tolist()
    total = 0.0
    for z, position in zip(step.teacher_logits().tolist(), step.aligned.tolist(), strict=True):
        t = float(step.t[int(step.rows[position])])
        s, weight = student[position], 1.0
        q, p = (softmax([x / term.temperature for x in side]) for side in (s, z))
        match term:
            case ForwardKLTerm():
                value = kl(p, q)
            case ReverseKLTerm():
                value = kl(q, p)
            case TidalTerm():
                part = share(t, term.schedule)
                r = softmax(
                    [((1 - part) * a + part * b) / term.temperature for a, b in zip(s, z, strict=True)]
                )
                value, weight = kl(r, q), bump(t, term.timestep_weight)
        # Nine masked positions, two of which have no teacher.
        total += weight * term.temperature**2 * value / 9.0
    return total


CROSS_TERMS: list[ObjectiveTerm] = [
    CalmTerm(),
    CalmTerm(temperature=1.0),
    TidalCalmTerm(),
    TidalCalmTerm(timestep_weight="midrange", schedule=TidalSchedule(axes="timestep")),
    ReverseCalmTerm(),
    ReverseBernoulliKLTerm(temperature=2.0),
]
SHARED_TERMS: list[ObjectiveTerm] = [
    ForwardKLTerm(),
    ForwardKLTerm(temperature=5.0),
    ReverseKLTerm(temperature=1.0),
    TidalTerm(),
    TidalTerm(timestep_weight="uniform", schedule=TidalSchedule(axes="training", growth="linear")),
    TidalTerm(schedule=TidalSchedule(growth="adaptive", lambda_init=0.2, lambda_max=0.6)),
]


def test_every_term_is_compared_with_a_loop() -> None:
    assert {type(term) for term in CROSS_TERMS} == set(get_args(AnyChunkTerm))
    assert {type(term) for term in SHARED_TERMS} == set(get_args(PositionTerm))


@pytest.mark.parametrize("normalisation", ["token", "sequence", "batch"])
def test_cross_entropy_equals_the_loop(normalisation: str) -> None:
    step, term = Step(), CrossEntropyTerm(normalisation=normalisation)
    output = Objective([term], LinearNoise()).loss(step.inputs())
    assert float(output.parts["cross_entropy"]) == pytest.approx(expected_cross_entropy(step, term), rel=1e-9)


def test_cross_entropy_weighs_by_the_schedule() -> None:
    step = Step()
    output = Objective([CrossEntropyTerm()], CosineNoise()).loss(step.inputs())
    wanted = sum(
        -lp * math.pi / 2 * math.tan(math.pi / 2 * (1 - float(step.t[row]))) / 20
        for lp, row in zip(token_lp(step), step.rows.tolist(), strict=True)
    )
    assert float(output.total.detach()) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("term", CROSS_TERMS, ids=lambda term: term.type)
def test_chunk_terms_equal_the_loop(term: ObjectiveTerm) -> None:
    step = Step()
    output = Objective([term], LinearNoise()).loss(step.inputs("chunks"))
    assert float(output.parts[term.type]) == pytest.approx(expected_chunk_term(step, term), rel=1e-6)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("term", CROSS_TERMS, ids=lambda term: term.type)
def test_filtered_chunk_terms_equal_the_loop(term: ObjectiveTerm, debias: bool) -> None:
    step = Step()
    filtered = term.model_copy(update={"chunk_filter": ChunkFilter(debias=debias, threshold=0.15)})
    output = Objective([filtered], LinearNoise()).loss(with_boundaries(step, boundaries(step)))
    expected = expected_filtered_term(step, term, [0, 2, 3, 4], debias=debias)
    assert float(output.parts[term.type]) == pytest.approx(expected, rel=1e-6)


def test_a_filter_that_keeps_nothing_gives_zero() -> None:
    step = Step()
    found = boundaries(step, [1e-9] * 5)
    output = Objective([CalmTerm(chunk_filter=ChunkFilter())], LinearNoise()).loss(
        with_boundaries(step, found)
    )
    assert float(output.total.detach()) == 0.0


def test_a_filter_without_boundaries_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="boundaries"):
        Objective([CalmTerm(chunk_filter=ChunkFilter())], LinearNoise()).loss(Step().inputs("chunks"))


@pytest.mark.parametrize("kind", ["hidden", "top_k"])
@pytest.mark.parametrize("term", SHARED_TERMS, ids=lambda term: term.type)
def test_position_terms_equal_the_loop(term: ObjectiveTerm, kind: str) -> None:
    step = Step()
    inputs = replace(step.inputs(), teacher=step.scores(kind, term.temperature))  # type: ignore[union-attr]
    output = Objective([term], LinearNoise(), slice_size=30).loss(inputs)
    assert float(output.parts[term.type]) == pytest.approx(expected_position_term(step, term), rel=1e-6)


# Sums and shares ------------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_and_parts_come_before_their_weights() -> None:
    step = Step()
    terms = [CrossEntropyTerm(weight=0.5), CalmTerm(weight=3.0), CalmTerm(weight=2.0, temperature=1.0)]
    output = Objective(terms, LinearNoise()).loss(step.inputs("chunks"))
    assert list(output.parts) == ["cross_entropy", "calm", "calm_2"]
    parts = [float(part) for part in output.parts.values()]
    assert float(output.total.detach()) == pytest.approx(
        0.5 * parts[0] + 3 * parts[1] + 2 * parts[2], rel=1e-6
    )
    assert not any(part.requires_grad for part in output.parts.values())
    alone = Objective([CalmTerm()], LinearNoise()).loss(step.inputs("chunks"))
    assert float(alone.parts["calm"]) == pytest.approx(parts[1])


def test_a_term_of_weight_zero_asks_for_nothing() -> None:
    output = Objective([CrossEntropyTerm(), CalmTerm(weight=0.0)], LinearNoise()).loss(Step().inputs())
    assert list(output.parts) == ["cross_entropy"]


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ((CrossEntropyTerm(), CalmTerm(), ReverseCalmTerm()), "chunks"),
        ((CrossEntropyTerm(normalisation="sequence"), TidalCalmTerm(timestep_weight="midrange")), "chunks"),
        ((CrossEntropyTerm(normalisation="batch"), TidalTerm(), ForwardKLTerm()), "hidden"),
    ],
)
def test_micro_batches_sum_to_the_step(terms: tuple[ObjectiveTerm, ...], kind: str) -> None:
    """Value and gradient are the same whether the step is one batch or one sequence at a time."""
    step, objective = Step(), Objective(terms, LinearNoise())
    whole = objective.loss(step.inputs(kind))
    wanted = torch.autograd.grad(whole.total, (step.hidden, step.head))
    shares = [objective.loss(step.only_row(row, kind)) for row in range(ROWS)]
    total = torch.stack([one.total for one in shares]).sum()
    torch.testing.assert_close(total, whole.total)
    for name, part in whole.parts.items():
        torch.testing.assert_close(torch.stack([one.parts[name] for one in shares]).sum(), part)
    for ours, reference in zip(torch.autograd.grad(total, (step.hidden, step.head)), wanted, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["none", "chunks", "hidden"])
def test_a_batch_without_a_masked_token_is_zero_and_differentiable(kind: str) -> None:
    step = Step()
    terms: dict[str, list[ObjectiveTerm]] = {
        "none": [CrossEntropyTerm()],
        "chunks": [CrossEntropyTerm(), CalmTerm(), TidalCalmTerm()],
        "hidden": [CrossEntropyTerm(), TidalTerm(), ForwardKLTerm()],
    }
    inputs = replace(step.only_row(1, kind), normalisers=Normalisers(0, 0))
    output = Objective(terms[kind], LinearNoise()).loss(inputs)
    assert float(output.total.detach()) == 0.0
    for gradient in torch.autograd.grad(output.total, (step.hidden, step.head)):
        assert not gradient.any()


@pytest.mark.parametrize("pipeline", list(Pipeline))
@pytest.mark.parametrize("variant", list(Variant))
def test_every_named_variant_trains(variant: Variant, pipeline: Pipeline) -> None:
    step = Step()
    terms, _ = expand_variant(variant, pipeline)
    kind = "chunks" if pipeline is Pipeline.CROSS_TOKENIZER else "hidden"
    Objective(terms, LinearNoise()).loss(step.inputs(kind)).total.backward()
    assert step.hidden.grad is not None
    assert bool(torch.isfinite(step.hidden.grad).all())
    assert bool(step.hidden.grad.abs().sum() > 0)


def test_tidal_follows_progress() -> None:
    step = Step()
    early, late = (
        Objective([TidalTerm()], LinearNoise()).loss(step.inputs("hidden", progress))
        for progress in (0.0, 1.0)
    )
    assert float(late.total.detach()) > 10 * float(early.total.detach())


# What is refused ------------------------------------------------------------------------------------------


def test_sums_that_mean_nothing_are_refused() -> None:
    noise = LinearNoise()
    with pytest.raises(InvalidInputError):
        Objective([], noise)
    with pytest.raises(InvalidInputError) as mixed:
        Objective([CalmTerm(), ForwardKLTerm()], noise)
    assert mixed.value.code == "objective_pipeline_mismatch"
    for terms in ([TidalCalmTerm(), ReverseCalmTerm()], [TidalTerm(), ReverseKLTerm()]):
        with pytest.raises(InvalidInputError) as tidal:
            Objective(terms, noise)
        assert tidal.value.code == "tidal_with_reverse"
        Objective(terms, noise, allow_unsupported=True)


def test_missing_scores_and_counts_are_named() -> None:
    step = Step()
    for term, kind in (
        (CalmTerm(), "none"),
        (CalmTerm(), "hidden"),
        (ForwardKLTerm(), "none"),
        (ForwardKLTerm(), "chunks"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            Objective([term], LinearNoise()).loss(step.inputs(kind))
        assert caught.value.param == "teacher"
    without = replace(step.inputs(), row_maskable=None)
    with pytest.raises(InvalidInputError) as caught:
        Objective([CrossEntropyTerm(normalisation="sequence")], LinearNoise()).loss(without)
    assert caught.value.param == "row_maskable"
    without = replace(step.inputs(), normalisers=Normalisers(20, 9))
    with pytest.raises(InvalidInputError) as caught:
        Objective([CrossEntropyTerm(normalisation="batch")], LinearNoise()).loss(without)
    assert caught.value.param == "normalisers.sequences"
    adaptive = TidalTerm(schedule=TidalSchedule(growth="adaptive"))
    with pytest.raises(InvalidInputError) as caught:
        Objective([adaptive], LinearNoise()).loss(
            replace(step.inputs("hidden"), progress=TrainingProgress(0.4))
        )
    assert caught.value.param == "adaptive_progress"


def test_top_k_scores_at_another_temperature_are_refused() -> None:
    step = Step()
    with pytest.raises(InvalidInputError) as caught:
        Objective([ForwardKLTerm(temperature=3.0)], LinearNoise()).loss(step.inputs("top_k"))
    assert caught.value.param == "teacher.temperatures"


def test_inputs_that_do_not_fit_are_refused(no_shape_annotations: None) -> None:
    step = Step()
    objective = Objective([CrossEntropyTerm(), CalmTerm()], LinearNoise())
    good = step.inputs("chunks")
    for name, value in (("target_ids", step.targets[:3]), ("masked_row", step.rows[:3])):
        with pytest.raises(ShapeError) as caught:
            objective.loss(replace(good, **{name: value}))
        assert caught.value.param == name
    with pytest.raises(InvalidInputError):
        objective.loss(replace(good, masked_row=step.rows + 2))
    with pytest.raises(ShapeError):
        objective.loss(
            replace(good, teacher=ChunkScores(step.chunk_lp, step.masked_chunk[:2], step.chunk_rows))
        )
    with pytest.raises(InvalidInputError):
        objective.loss(
            replace(good, teacher=ChunkScores(step.chunk_lp, step.masked_chunk, step.chunk_rows + 3))
        )
    hidden = HiddenScores(step.teacher_hidden, step.teacher_head, step.aligned + 5, SHARED)
    with pytest.raises(InvalidInputError):
        Objective([ForwardKLTerm()], LinearNoise()).loss(replace(good, teacher=hidden))


def test_what_is_not_finite_is_named() -> None:
    step = Step()
    broken = replace(step.inputs("chunks"), student_hidden=step.hidden.detach() * math.nan)
    with pytest.raises(NonFiniteError):
        Objective([CrossEntropyTerm()], LinearNoise()).loss(broken)
    scores = ChunkScores(step.chunk_lp * math.inf, step.masked_chunk, step.chunk_rows)
    with pytest.raises(NonFiniteError) as caught:
        Objective([CalmTerm()], LinearNoise()).loss(replace(step.inputs(), teacher=scores))
    assert caught.value.param == "teacher_chunk_lp"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_scores_are_normalised_with_their_tail(temperature: float) -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -2.0]], dtype=torch.float64)
    rest = [(logits[:, 2:] / each).logsumexp(dim=1) for each in (1.0, 2.0)]
    scores = TopKScores(
        torch.tensor([[0, 1]]), logits[:, :2], torch.stack(rest, dim=1), (1.0, 2.0), torch.tensor([0]), 4
    )
    exact = softmax((logits[0] / temperature).tolist())
    known = scores.at(temperature)
    assert known.log_probs.exp()[0].tolist() == pytest.approx(exact[:2])
    assert float(known.log_tail.exp()) == pytest.approx(sum(exact[2:]))

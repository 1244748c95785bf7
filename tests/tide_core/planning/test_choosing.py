"""The split that a plan proposes: what the simulation says against what the mean says."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.support.planned_pairs import CROSS, SHARED, plan, spec_of, step_of
from tide_core.contracts.job import ResolvedJobSpec
from tide_core.contracts.objective import Pipeline
from tide_core.planning import choosing
from tide_core.planning.choosing import choose_by, slice_of
from tide_core.planning.kinds import KINDS
from tide_core.planning.placing import Candidate, fastest, trim

H100 = KINDS["h100-80g"]


def with_batch(spec: ResolvedJobSpec, batch: int) -> ResolvedJobSpec:
    hyper = spec.hyperparameters.model_copy(update={"global_batch_size": batch})
    return spec.model_copy(update={"hyperparameters": hyper})


@dataclass(frozen=True)
class Case:
    """A job on H100s, and whether the simulation proposes the mean's own split."""

    spec: ResolvedJobSpec
    devices: int
    is_the_means: bool


CASES = {
    # A log-probability is soon computed: replicas have time to spare, whatever the order of the questions.
    "trainers are the limit": Case(CROSS, 8, True),
    # A question a trainer, each half a forward: many replicas with few questions, the last of which decides.
    "few large questions": Case(SHARED, 64, False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_simulation_decides(case: Case) -> None:
    played = plan(case.spec, ("h100-80g", case.devices), is_simulated=True)
    mean = plan(case.spec, ("h100-80g", case.devices))
    splits = [(found.best.trainers, found.best.teacher_replicas) for found in (played, mean)]
    assert (splits[0] == splits[1]) is case.is_the_means, splits
    assert played.best.simulated is not None
    assert played.best.devices <= case.devices
    (reason,) = [note for note in played.notes if "The split rests on" in note]
    assert "simulated time" in reason
    assert ("it is the fastest in the mean, too" in reason) is case.is_the_means
    assert any("mean time of a step; it was not simulated" in note for note in mean.notes)


def test_where_they_disagree_the_proposal_is_faster_simulated() -> None:
    """Played through for far longer than the choice was."""
    case = CASES["few large questions"]
    step, groups = step_of(case.spec), [(H100, case.devices)]
    proposed = choosing.choose(step, groups, is_simulated=True).candidate
    in_the_mean = trim(fastest(step, groups, 1)[0])
    ours, theirs = choosing.simulate_candidate(proposed), choosing.simulate_candidate(in_the_mean)
    assert ours is not None
    assert theirs is not None
    assert in_the_mean.seconds <= proposed.seconds
    assert ours.seconds_per_step < 0.95 * theirs.seconds_per_step


def few() -> list[Candidate]:
    return fastest(step_of(SHARED), [(H100, 64)], 3)


def test_the_pace_alone_decides_among_the_few() -> None:
    candidates = few()
    slowest_in_the_mean = candidates[-1]

    def pace(candidate: Candidate) -> float:
        return 1.0 if candidate.trainers == slowest_in_the_mean.trainers else 2.0

    chosen = choose_by(pace, candidates)
    assert chosen.trainers == slowest_in_the_mean.trainers
    # No replica makes this pace any better: only as many are kept as the mean needs.
    assert chosen.replicas == trim(slowest_in_the_mean).replicas


def test_of_equally_fast_ones_the_first_in_the_mean_is_taken() -> None:
    candidates = few()
    assert choose_by(lambda candidate: 1.0, candidates) == trim(candidates[0])
    # A hundredth is within what draws differ by.
    chosen = choose_by(lambda candidate: 1.0 + 0.001 * candidate.trainers / 64, candidates)
    assert chosen.trainers == candidates[0].trainers


def test_replicas_that_shorten_the_step_are_kept() -> None:
    first = few()[0]
    needed = trim(first).replicas + 7
    assert needed < first.replicas
    chosen = choose_by(lambda candidate: 1.0 if candidate.replicas >= needed else 1.5, [first])
    assert needed <= chosen.replicas <= 1.2 * needed


def test_a_large_step_is_compared_on_a_slice() -> None:
    spec = with_batch(SHARED, 4096)
    step = step_of(spec)
    whole = trim(fastest(step, [(H100, 512)], 1)[0])
    assert slice_of(whole) == 8
    small = with_batch(SHARED, 512)
    eighth = trim(fastest(step_of(small), [(H100, 64)], 1)[0])
    assert slice_of(eighth) == 1
    # The slice is a cluster of an eighth's size, up to the rounding of its trainers and replicas.
    assert choosing.simulated_seconds(whole) == pytest.approx(choosing.simulated_seconds(eighth), rel=0.1)
    notes = plan(spec, ("h100-80g", 512), is_simulated=True).notes
    assert any("of 1/8 of the cluster" in note for note in notes)


def test_the_same_question_has_the_same_answer() -> None:
    assert plan(SHARED, ("h100-80g", 64), is_simulated=True) == plan(
        SHARED, ("h100-80g", 64), is_simulated=True
    )


def test_devices_that_are_shared_are_compared_by_their_mean() -> None:
    (only,) = fastest(step_of(CROSS), [(H100, 1)], 3)
    assert only.shares_devices
    assert choosing.simulated_seconds(only) == only.seconds
    assert plan(CROSS, ("h100-80g", 1), is_simulated=True).best.shares_devices


def test_a_control_has_nothing_to_simulate() -> None:
    found = plan(spec_of(Pipeline.SHARED_TOKENIZER, "none"), ("h100-80g", 4), is_simulated=True)
    assert found.best.simulated is None
    assert any("Nothing is asked of a teacher" in note for note in found.notes)


@pytest.mark.parametrize("batch", [80, 4096])
def test_a_plan_for_a_large_cluster_is_made_at_once(batch: int) -> None:
    """Aim: two seconds of a processor; the bound leaves room for slow and shared machines."""
    started = time.thread_time()
    plan(with_batch(SHARED, batch), ("h100-80g", 512), is_simulated=True)
    assert time.thread_time() - started < 8.0

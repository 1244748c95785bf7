"""The simulation where theory is exact: sizes that do not vary, one stage that is slower than the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tide_core.planning.noise import DrawnSequences
from tide_core.planning.simulation import SimulatedJob, SimulatedPool, simulate

TOKENS, MASKED, SEQUENCES = 100, 20, 8
PER_TOKEN = 1e-4
ASKED_SECONDS = SEQUENCES * TOKENS * PER_TOKEN


def fixed(rows: int = 1) -> DrawnSequences:
    one = np.ones(4, np.int64)
    return DrawnSequences(TOKENS, one, one, TOKENS, one * rows, one * TOKENS, one * MASKED)


JOB = SimulatedJob(
    trainers=1,
    requests=1,
    sequences=SEQUENCES,
    trainer_seconds=0.5,
    depth=2,
    sizes=fixed(),
    row_bytes=0.0,
)
POOL = SimulatedPool(
    replicas=1,
    budget=4096,
    batch_seconds=lambda rows, length, masked: rows * length * PER_TOKEN,
    link_bandwidth=1e9,
    round_trip=0.0,
)


def test_a_trainer_that_is_slower_never_waits() -> None:
    (found,) = simulate([JOB], POOL, 40)
    assert found.seconds_per_step == pytest.approx(0.5)
    assert found.teacher_wait_ratio == 0.0
    assert found.teacher_busy_ratio == pytest.approx(ASKED_SECONDS / 0.5, rel=0.05)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_teacher_that_is_slower_sets_the_pace(depth: int) -> None:
    (found,) = simulate([replace(JOB, trainer_seconds=0.02, depth=depth)], POOL, 60)
    assert found.seconds_per_step == pytest.approx(ASKED_SECONDS, rel=0.03)
    assert found.teacher_wait_ratio == pytest.approx(1 - 0.02 / ASKED_SECONDS, rel=0.03)
    assert found.teacher_busy_ratio == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("own", "theirs"), [(0.02, ASKED_SECONDS), (0.5, ASKED_SECONDS)])
def test_without_prefetching_the_stages_follow_each_other(own: float, theirs: float) -> None:
    pool = replace(POOL, round_trip=0.01)
    (found,) = simulate([replace(JOB, trainer_seconds=own, depth=0)], pool, 30)
    assert found.seconds_per_step == pytest.approx(own + theirs + 0.01)
    assert found.teacher_wait_ratio == pytest.approx((theirs + 0.01) / (own + theirs + 0.01))


def test_a_slow_wire_sets_the_pace() -> None:
    pool = replace(POOL, link_bandwidth=1e3)
    (found,) = simulate([replace(JOB, trainer_seconds=0.02, row_bytes=4.0)], pool, 60)
    assert found.seconds_per_step == pytest.approx(SEQUENCES * MASKED * 4 / 1e3, rel=0.05)


def test_replicas_share_the_work() -> None:
    job = replace(JOB, trainers=8, trainer_seconds=0.01, depth=4)
    paces = [simulate([job], replace(POOL, replicas=number), 80)[0].seconds_per_step for number in (1, 2, 4)]
    assert paces[0] == pytest.approx(8 * ASKED_SECONDS, rel=0.03)
    assert paces[1] == pytest.approx(4 * ASKED_SECONDS, rel=0.15)
    assert paces[2] == pytest.approx(2 * ASKED_SECONDS, rel=0.35)
    assert all(
        pace >= 8 * ASKED_SECONDS / number * 0.99 for pace, number in zip(paces, (1, 2, 4), strict=True)
    )


def test_the_budget_cuts_forwards() -> None:
    """With a fixed cost for each forward, a budget of two sequences makes four forwards of eight."""

    def costly(rows: float, length: float, masked: float) -> float:
        return 0.1

    pool = replace(POOL, budget=2 * TOKENS, batch_seconds=costly)
    (found,) = simulate([replace(JOB, trainer_seconds=0.0)], pool, 40)
    assert found.seconds_per_step == pytest.approx(4 * 0.1, rel=0.05)


def test_jobs_share_a_busy_pool_by_their_weights() -> None:
    slow = replace(JOB, trainer_seconds=0.0, depth=8)
    pool = replace(POOL, budget=TOKENS)
    heavy, light = simulate([replace(slow, weight=3.0), slow], pool, 60)
    # The heavy job, alone in the end of its steps no sooner than in the middle, has three of four forwards.
    assert heavy.seconds_per_step == pytest.approx(4 / 3 * ASKED_SECONDS, rel=0.1)
    assert light.seconds_per_step > heavy.seconds_per_step * 1.3


def test_a_job_that_asks_nothing_is_not_held_up() -> None:
    (found,) = simulate([replace(JOB, sizes=fixed(rows=0))], POOL, 20)
    assert found.seconds_per_step == pytest.approx(0.5)
    assert found.teacher_busy_ratio == 0.0


def test_the_same_question_has_the_same_answer() -> None:
    jobs = [replace(JOB, trainers=3), replace(JOB, weight=2.0)]
    pool = replace(POOL, replicas=3)
    assert simulate(jobs, pool, 30) == simulate(jobs, pool, 30)

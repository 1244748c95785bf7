"""Which split of the devices a plan proposes: the fastest few in the mean, held against the simulation.

In the mean no trainer waits for the last of many answers, so the split that is the fastest in the mean,
trimmed to the replicas that a mean needs, may wait for a quarter of each step. The few fastest in the mean
are therefore played through, each with all devices that its trainers leave; the fastest of them then gives
back the replicas without which its simulated step takes no longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tide_core.contracts.plan import DeviceKind, Simulated
from tide_core.planning.placing import Candidate, Group, fastest, trim
from tide_core.planning.roles import Step
from tide_core.planning.simulation import SimulatedJob, SimulatedPool, simulate

COMPARED = 3
"""Splits that are played through, the fastest in the mean."""
TOLERANCE = 1.02
"""Ratio of simulated steps below which two splits count as equally fast: draws differ by as much."""
LARGEST_BATCH = 8192
"""Sequences of a step above which nothing is simulated."""
_MOST_SPARE = 4
"""Times the replicas that the mean needs, beyond which none is tried."""
_SHOWN_SEQUENCES, _COMPARED_SEQUENCES = 8_000, 3_000
_FEWEST_STEPS, _MOST_STEPS = 12, 400
_SLICE_BATCH, _SLICE_PROCESSES = 512, 8
"""A larger step is simulated on a slice of the cluster, with at least so many trainers and replicas."""

Pace = Callable[[Candidate], float]
Split = tuple[DeviceKind, int, DeviceKind | None, int, bool]


@dataclass(frozen=True)
class Choice:
    """The split that a plan proposes, and what that rests on."""

    candidate: Candidate
    reason: str


def choose(step: Step, groups: list[Group], *, is_simulated: bool) -> Choice:
    """The fastest split; of equally fast ones that with the fewest devices.

    Args:
        step: the job's step.
        groups: the devices.
        is_simulated: hold the means against the simulation.

    Raises:
        InvalidInputError: ``does_not_fit``: no placement has the memory.
    """
    few = fastest(step, groups, COMPARED)
    in_the_mean = trim(few[0])
    if step.teacher is None:
        return Choice(
            in_the_mean, "Nothing is asked of a teacher: the split rests on the mean time of a step."
        )
    if not is_simulated:
        return Choice(in_the_mean, "The split rests on the mean time of a step; it was not simulated.")
    pace = _remember(simulated_seconds)
    chosen = choose_by(pace, few)
    return Choice(chosen, _reason(chosen, in_the_mean, pace))


def choose_by(pace: Pace, candidates: list[Candidate]) -> Candidate:
    """The candidate with the shortest step by ``pace``, without the replicas that shorten it by nothing.

    Args:
        pace: seconds of a step.
        candidates: each with all devices that its trainers leave, the fastest in the mean first; of equally
            fast ones the first is taken.
    """
    served = [_with_enough(candidate) for candidate in candidates]
    enough = min(pace(candidate) for candidate in served) * TOLERANCE
    chosen = next(candidate for candidate in served if pace(candidate) <= enough)
    return _fewest_replicas(pace, chosen, enough)


def simulate_candidate(candidate: Candidate) -> Simulated | None:
    """A placement, event by event; None without a teacher or when it shares a device with the trainer."""
    return _play(candidate, _SHOWN_SEQUENCES)


def simulated_seconds(candidate: Candidate) -> float:
    """A step of a placement as the choice sees it; in the mean where it cannot be simulated."""
    played = _play(candidate, _COMPARED_SEQUENCES)
    return candidate.seconds if played is None else played.seconds_per_step


def slice_of(candidate: Candidate) -> int:
    """Into how many equal slices a placement is cut, of which one is simulated."""
    most = min(candidate.trainers, candidate.replicas) // _SLICE_PROCESSES
    return max(1, min(most, candidate.step.batch // _SLICE_BATCH))


def _play(candidate: Candidate, sequences: int) -> Simulated | None:
    """A slice of a placement, for about so many sequences."""
    teacher, parts = candidate.teacher, slice_of(candidate)
    if teacher is None or candidate.shares_devices:
        return None
    trainers, replicas = (round(number / parts) for number in (candidate.trainers, candidate.replicas))
    # What rounding gives the slice's replicas more or less to do than the whole's, their pace takes back.
    burden = candidate.trainers * replicas / (trainers * candidate.replicas)
    requests, rows = candidate.trainer.shares(candidate.trainers)
    step = candidate.step
    job = SimulatedJob(
        trainers=trainers,
        requests=requests,
        sequences=rows,
        trainer_seconds=candidate.trainer.cost(candidate.trainers).process_seconds,
        depth=step.spec.resources.prefetch_steps,
        sizes=step.sizes,
        row_bytes=step.row_bytes,
    )
    pool = SimulatedPool(
        replicas=replicas,
        budget=teacher.budget,
        batch_seconds=lambda rows, length, masked: burden * teacher.pace(rows, length, masked),
        link_bandwidth=min(teacher.kind.link_bandwidth, candidate.trainer.kind.link_bandwidth),
    )
    steps = min(_MOST_STEPS, max(_FEWEST_STEPS, sequences * parts // step.batch))
    return simulate([job], pool, steps)[0]


def _with_enough(candidate: Candidate) -> Candidate:
    """Without the replicas that would stand idle in any case."""
    if candidate.teacher is None or candidate.shares_devices:
        return candidate
    return candidate.with_replicas(min(candidate.replicas, _MOST_SPARE * trim(candidate).replicas))


def _fewest_replicas(pace: Pace, candidate: Candidate, enough: float) -> Candidate:
    """With as few replicas as make steps short enough: no fewer than the mean needs, by bisection."""
    if candidate.teacher is None or candidate.shares_devices:
        return candidate
    low, high = trim(candidate).replicas, candidate.replicas
    if pace(candidate.with_replicas(low)) <= enough:
        return candidate.with_replicas(low)
    # To a tenth: draws tell no finer.
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        if pace(candidate.with_replicas(middle)) <= enough:
            high = middle
        else:
            low = middle
    return candidate.with_replicas(high)


def _remember(pace: Pace) -> Pace:
    """``pace``, computed once for each split."""
    known: dict[Split, float] = {}

    def looked_up(candidate: Candidate) -> float:
        split = _split(candidate)
        if split not in known:
            known[split] = pace(candidate)
        return known[split]

    return looked_up


def _split(candidate: Candidate) -> Split:
    """What sets a candidate apart from others of the same step."""
    theirs = candidate.teacher.kind if candidate.teacher is not None else None
    return candidate.trainer.kind, candidate.trainers, theirs, candidate.replicas, candidate.shares_devices


def _reason(chosen: Candidate, in_the_mean: Candidate, pace: Pace) -> str:
    compared = "The split rests on the simulated time of a step"
    parts = slice_of(chosen)
    if parts > 1 and not chosen.shares_devices:
        compared += f", of 1/{parts} of the cluster and of the step"
    if _split(chosen) == _split(in_the_mean):
        return f"{compared}; it is the fastest in the mean, too."
    return (
        f"{compared}, {pace(chosen):.3g} s: what is the fastest in the mean, {in_the_mean.trainers} trainers "
        f"and {in_the_mean.replicas} replicas, takes {pace(in_the_mean):.3g} s simulated."
    )

"""Trainers and teachers together over real Ray Serve; devices are clocks (:mod:`benchmarks.paced`).

Run: ``python -m benchmarks.system [--quick]``. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paced
from benchmarks.arms import describe
from benchmarks.measuring import ROOT
from benchmarks.pieces import make_engine, request_of
from benchmarks.scenario import SCENARIOS, Scenario, Sizes, batch_of, recipe, samples, teacher
from tide_core.contracts.objective import (
    CalmTerm,
    CrossEntropyTerm,
    Pipeline,
    ReverseBernoulliKLTerm,
    TidalCalmTerm,
)
from tide_core.contracts.scores import ScoreRequest
from tide_core.scoring.prefetcher import Prefetcher
from tide_core.training.collating import collate
from tide_core.training.drawing import draw
from tide_core.training.steps import DrawnStep, ask_steps
from workers.scores.cache import CachingTransport, ScoreCache
from workers.scores.local_transport import LocalTransport
from workers.scores.serve_transport import ServeTransport

SIZES = Sizes(vocab=paced.VOCAB, length=256, batch=8)
STEP_SECONDS = 0.2
PREFETCH_STEPS = 2
PAUSE_SECONDS = 0.04
WARM_STEPS = 3
STUDY = [
    SCENARIOS["ce"],
    SCENARIOS["calm"],
    SCENARIOS["reverse_calm"],
    Scenario("calm_cooler", Pipeline.CROSS_TOKENIZER, (CrossEntropyTerm(), CalmTerm(temperature=2.0))),
    Scenario("calm_tidal", Pipeline.CROSS_TOKENIZER, (CrossEntropyTerm(), TidalCalmTerm())),
    Scenario(
        "reverse_bernoulli_kl", Pipeline.CROSS_TOKENIZER, (CrossEntropyTerm(), ReverseBernoulliKLTerm())
    ),
]
"""Six variants whose teacher sees the same."""


@dataclass(frozen=True)
class TrainerFigures:
    """One trainer's run: seconds of its steps and of its waiting, warm-up left out."""

    steps: int
    seconds: float
    waited: float


class Trainer:
    """A trainer whose device is a clock: draws, asks ahead over Serve, and sleeps for each step."""

    def run(self, application: str, job_id: str, steps: int, step_seconds: float) -> TrainerFigures:
        """Take so many steps."""
        scenario = SCENARIOS["reverse_calm"]
        sizes = replace(SIZES, seed=SIZES.seed + len(job_id) + sum(map(ord, job_id)))
        rows = samples(scenario, sizes, steps)
        own = recipe(scenario, sizes, job_id=job_id)

        def draw_step(number: int) -> DrawnStep:
            noisy = [draw(row, 0, own) for row in batch_of(rows, sizes, number)]
            return DrawnStep(number, [collate(noisy, own, mask_token_id=sizes.mask_id)])

        transport = ServeTransport(paced.lease(application))
        waited = begun = 0.0
        with Prefetcher(transport, ask_steps(draw_step, range(steps)), PREFETCH_STEPS) as answered:
            for number, step in enumerate(answered):
                if number == WARM_STEPS:
                    begun = time.monotonic()
                if number >= WARM_STEPS:
                    waited += step.teacher_wait_seconds
                time.sleep(step_seconds)
        seconds = time.monotonic() - begun
        transport.close()
        return TrainerFigures(steps - WARM_STEPS, seconds, waited)


@contextmanager
def cluster() -> Iterator[None]:
    """A local Ray with Serve, as many logical processors as the benchmark places."""
    import ray
    from ray import serve

    environment = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 * 2**20,
        runtime_env=environment,
    )
    try:
        serve.start(proxy_location="Disabled")
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def train_together(application: str, trainers: int, steps: int) -> list[TrainerFigures]:
    """Run so many trainers at once, each a process of its own and a job of its own."""
    import ray

    actors = [ray.remote(num_cpus=0.1)(Trainer).remote() for _ in range(trainers)]
    # A first short run starts the processes and imports what they need.
    ray.get(
        [actor.run.remote(application, f"warm-{n}", WARM_STEPS + 1, 0.0) for n, actor in enumerate(actors)]
    )
    figures: list[TrainerFigures] = ray.get(
        [actor.run.remote(application, f"job-{n}", steps, STEP_SECONDS) for n, actor in enumerate(actors)]
    )
    for actor in actors:
        ray.kill(actor)
    return figures


def wait_ratio(steps: int) -> dict[str, float]:
    """One trainer and a teacher that is 20% faster than it needs."""
    per_token = STEP_SECONDS / 1.2 / _tokens_per_step()
    paced.deploy("faster", seconds_per_token=per_token)
    (figures,) = train_together("faster", 1, steps)
    return {
        "teacher_speed": 1.2,
        "wait_ratio": figures.waited / figures.seconds,
        "step_seconds": figures.seconds / figures.steps,
        "device_seconds": STEP_SECONDS,
    }


def scaling(counts: tuple[int, ...], steps: int, teacher_speed: float = 3.0) -> list[dict[str, float]]:
    """Trainers on one replica that could feed ``teacher_speed`` of them."""
    per_token = STEP_SECONDS / teacher_speed / _tokens_per_step()
    paced.deploy("scaling", seconds_per_token=per_token)
    found = []
    for count in counts:
        figures = train_together("scaling", count, steps)
        found.append(
            {
                "trainers": count,
                "teacher_speed": teacher_speed,
                "steps_per_second": sum(each.steps / each.seconds for each in figures),
                "wait_ratio": sum(each.waited for each in figures) / sum(each.seconds for each in figures),
            }
        )
    for row in found:
        row["throughput_ratio"] = row["steps_per_second"] / found[0]["steps_per_second"]
    return found


def shares(jobs: int, seconds: float) -> dict[str, Any]:
    """Jobs that ask without a pause, half of them with twice the weight: how the pool serves them."""
    handle = paced.deploy("shares", seconds_per_token=2e-5, max_batch_tokens=2048)
    scenario = SCENARIOS["reverse_calm"]
    stop = threading.Event()
    weights = {f"job-{number}": 1.0 + number % 2 for number in range(jobs)}
    transport = ServeTransport(paced.lease("shares"))

    def ask(job_id: str) -> None:
        request = replace(request_of(scenario, SIZES, job_id=job_id), weight=weights[job_id])
        flight = [transport.submit(request) for _ in range(3)]
        while not stop.is_set():
            flight.pop(0).result()
            flight.append(transport.submit(request))
        for future in flight:
            future.result()

    threads = [threading.Thread(target=ask, args=(job,)) for job in weights]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    before = handle.stats.remote().result()["tokens_by_job"]
    time.sleep(seconds)
    after = handle.stats.remote().result()["tokens_by_job"]
    stop.set()
    for thread in threads:
        thread.join()
    transport.close()
    served = {job: after[job] - before.get(job, 0) for job in weights}
    total, weight = sum(served.values()), sum(weights.values())
    deviation = {job: served[job] / total / (weights[job] / weight) - 1.0 for job in weights}
    return {
        "jobs": jobs,
        "tokens": served,
        "weights": weights,
        "largest_deviation": max(map(abs, deviation.values())),
    }


class Echo:
    """A bare Ray actor that answers at once: what Ray itself takes for the same question and answer."""

    def __init__(self, answer: np.ndarray) -> None:
        self._answer = answer

    async def score(self, request: ScoreRequest) -> np.ndarray:
        """An answer of the right size."""
        return self._answer


def round_trip(repeats: int) -> dict[str, float]:
    """32 sequences of 256 tokens over Serve: milliseconds beyond the forward itself.

    In turns with a bare Ray actor, and both once more after a pause as long as a short forward: a process
    that has slept answers later, whatever the way.
    """
    import ray

    paced.deploy("round-trip", seconds_per_token=0.0, max_batch_tokens=32 * 256)
    request = request_of(SCENARIOS["reverse_calm"], replace(SIZES, batch=32))
    transport = ServeTransport(paced.lease("round-trip"))
    answer = np.zeros(int((request.groups > 0).sum()), dtype=np.float32)
    actor = ray.remote(num_cpus=0.1)(Echo).remote(answer)

    def over_serve() -> float:
        return transport.submit(request).result().compute_seconds

    def over_actor() -> float:
        ray.get(actor.score.remote(request))
        return 0.0

    found = {}
    for pause, suffix in ((0.0, ""), (PAUSE_SECONDS, "_after_a_pause")):
        taken: dict[str, list[float]] = {"serve": [], "actor": []}
        for number in range(repeats + 20):
            for name, ask in (("serve", over_serve), ("actor", over_actor)):
                time.sleep(pause)
                start = time.perf_counter()
                compute = ask()
                if number >= 20:
                    taken[name].append(1000.0 * (time.perf_counter() - start - compute))
        found[f"median_ms{suffix}"] = statistics.median(taken["serve"])
        found[f"bare_actor_ms{suffix}"] = statistics.median(taken["actor"])
        found[f"p95_ms{suffix}"] = statistics.quantiles(taken["serve"], n=20)[-1]
    ray.kill(actor)
    transport.close()
    return found


def study(steps: int) -> dict[str, Any]:
    """The teacher's work for all variants of a study with one cache, against that for one job.

    CompDemo asks other questions (two views instead of one), so a study that adds it pays for them once.
    """
    sizes = replace(Sizes(), vocab=2000, teacher_hidden=128, teacher_layers=2)
    alone = _teacher_tokens([SCENARIOS["reverse_calm"]], sizes, steps)
    views = SCENARIOS["calm_tidal_compdemo"]
    return {
        "variants": [scenario.name for scenario in STUDY],
        "ratio": _teacher_tokens(STUDY, sizes, steps) / alone,
        "ratio_compdemo_alone": _teacher_tokens([views], sizes, steps) / alone,
        "ratio_with_compdemo": _teacher_tokens([*STUDY[:-1], views], sizes, steps) / alone,
    }


def _teacher_tokens(scenarios: list[Scenario], sizes: Sizes, steps: int) -> int:
    """Tokens through the teacher's forwards when these jobs run one after the other with one cache."""
    served = make_engine(teacher("mixture", sizes))
    with tempfile.TemporaryDirectory() as folder:
        cached = CachingTransport(LocalTransport(served, describe(served)), ScoreCache(Path(folder), 2**30))
        for scenario in scenarios:
            for request in _requests(scenario, sizes, steps):
                cached.submit(request).result()
        cached.close()
    tokens = served.statistics().tokens
    served.close()
    return tokens


def _requests(scenario: Scenario, sizes: Sizes, steps: int) -> Iterator[ScoreRequest]:
    own = recipe(scenario, sizes)
    rows = samples(scenario, sizes, steps)
    for number in range(steps):
        noisy = [draw(row, 0, own) for row in batch_of(rows, sizes, number)]
        request = collate(noisy, own, mask_token_id=sizes.mask_id).request
        if request is not None:
            yield request


def _tokens_per_step() -> int:
    """Tokens of the teacher's forwards for a step: rows padded to the longest."""
    return SIZES.batch * SIZES.length


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Everything over one cluster."""
    steps = 20 if is_quick else 60
    found: dict[str, Any] = {"study": study(2 if is_quick else 6)}
    with cluster():
        found["round_trip"] = round_trip(100 if is_quick else 400)
        found["wait"] = wait_ratio(steps)
        found["scaling"] = scaling((1, 2) if is_quick else (1, 2, 4, 8), steps)
        found["shares"] = [
            shares(jobs, 4.0 if is_quick else 10.0) for jobs in ((8,) if is_quick else (2, 4, 8))
        ]
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(measure(is_quick=parser.parse_args().quick)))


if __name__ == "__main__":
    main()

"""What only an accelerator can show, at the true size of the models with drawn weights.

Teacher forwards against the measured matrix-product peak, the grouped expert product against the loop over
experts, the step and its memory against the naive arm, and how long a step waits for a teacher on the same
device. With small sizes everything runs on a CPU too, which is how the tests keep it alive.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.arms import TideArm
from benchmarks.measuring import in_a_fresh_process, median_seconds, synchronise
from benchmarks.naive.models import with_expert_loop
from benchmarks.pieces import teacher_flops
from benchmarks.scenario import (
    SCENARIOS,
    TRUE_VOCAB,
    Scenario,
    Sizes,
    as_json,
    batch_of,
    samples,
    student,
    teacher,
)
from benchmarks.step import ARMS, LEARNING_RATE, MODULE, as_flags
from workers.scores.prefetcher import Prefetcher
from workers.student.feed import MicroBatch
from workers.student.stream import answers_of, asked_steps

TRUE_SIZES = Sizes(vocab=TRUE_VOCAB, length=512, batch=8, true_size=1)
WARM_STEPS = 2


def device_dtype(device: str) -> torch.dtype:
    """bfloat16 on an accelerator, float32 on a CPU."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def forwards(sizes: Sizes, device: str, *, repeats: int) -> dict[str, Any]:
    """FLOP/s of both teachers' forwards, and the mixture with its experts in a Python loop."""
    found = teacher_flops(sizes, repeats=repeats, device=device, dtype=device_dtype(device))
    looped = with_expert_loop(teacher("mixture", sizes, dtype=device_dtype(device), device=device))
    ids = torch.ones(sizes.batch, sizes.length, dtype=torch.long, device=device)
    found["expert_loop_seconds"] = median_seconds(partial(looped.hidden, ids), repeats=repeats)
    found["grouped_over_loop"] = found["expert_loop_seconds"] / found["mixture"]["seconds"]
    return found


def steps(scenario: Scenario, sizes: Sizes, device: str, *, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory of both arms, each in a process of its own: two teachers may not fit."""
    found: dict[str, Any] = {
        "scenario": scenario.name,
        "sizes": as_json(sizes),
        "seconds": {},
        "peak_bytes": {},
    }
    common = ["--device", device, *as_flags(sizes)]
    for arm in ARMS:
        timed = in_a_fresh_process(
            MODULE, ["one", scenario.name, "--arm", arm, "--repeats", str(repeats), *common]
        )
        found["seconds"][arm] = timed["seconds"]
        memory = in_a_fresh_process(MODULE, ["memory", scenario.name, "--arm", arm, *common], memory=True)
        found["peak_bytes"][arm] = memory["bytes"]
    found["ratio"] = found["seconds"]["naive"] / found["seconds"]["tide"]
    found["memory_share"] = found["peak_bytes"]["tide"] / max(1, found["peak_bytes"]["naive"])
    return found


def waiting(scenario: Scenario, sizes: Sizes, device: str, *, number_of_steps: int) -> dict[str, float]:
    """Share of the time in which a trainer waits for a teacher on its own device, two steps asked ahead."""
    dtype = device_dtype(device)
    guide = teacher(scenario.teacher, sizes, dtype=dtype, device=device)
    autocast = None if device == "cpu" else dtype
    arm = TideArm(scenario, sizes, student(sizes, device=device), guide, autocast=autocast)
    rows = samples(scenario, sizes, number_of_steps + WARM_STEPS)

    def drawn(number: int) -> list[MicroBatch]:
        return [arm.drawn(batch_of(rows, sizes, number))]

    waited = begun = 0.0
    with Prefetcher(arm.transport, asked_steps(drawn, range(number_of_steps + WARM_STEPS)), 2) as answered:
        for step in answered:
            if step.payload.number == WARM_STEPS:
                synchronise()
                begun = time.perf_counter()
            if step.payload.number >= WARM_STEPS:
                waited += step.teacher_wait_seconds
            (batch,), (answer,) = step.payload.batches, answers_of(step)
            arm.train(batch, answer, LEARNING_RATE)
    synchronise()
    seconds = time.perf_counter() - begun
    arm.close()
    return {"step_seconds": seconds / number_of_steps, "wait_ratio": waited / seconds}


def measure(sizes: Sizes = TRUE_SIZES, device: str = "cuda", *, repeats: int = 5) -> dict[str, Any]:
    """Everything; the teachers see twice the student's length in pipeline A's forwards, as in the paper."""
    longer = replace(sizes, length=2 * sizes.length)
    chosen = [SCENARIOS["reverse_calm"], SCENARIOS["tidal_compdemo"]]
    return {
        "forwards": forwards(longer, device, repeats=repeats),
        "steps": [steps(scenario, sizes, device, repeats=repeats) for scenario in chosen],
        "waiting": {
            scenario.name: waiting(scenario, sizes, device, number_of_steps=2 * repeats)
            for scenario in chosen
        },
    }

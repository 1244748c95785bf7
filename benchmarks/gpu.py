"""What only an accelerator can show, at the true size of the models with drawn weights.

Teacher forwards against the measured matrix-product peak, the grouped expert product against the loop over
experts, the step and its memory against the naive arm, and how long a step waits for a teacher on the same
device. With small sizes everything runs on a CPU too, which is how the tests keep it alive.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.arms import TideArm
from benchmarks.measuring import alternate, in_a_fresh_process, median_seconds, synchronise
from benchmarks.naive.models import with_expert_loop
from benchmarks.pieces import teacher_flops
from benchmarks.scenario import (
    SCENARIOS,
    TRUE_VOCAB,
    Scenario,
    Sizes,
    as_json,
    batch_of,
    recipe,
    samples,
    student,
    teacher,
)
from benchmarks.step import ARMS, LEARNING_RATE, MODULE, as_flags
from tide_core.contracts.scores import ScoreRequest
from tide_core.models.compiling import compile_layers
from tide_core.scoring.prefetcher import Prefetcher
from tide_core.training.collating import collate
from tide_core.training.drawing import draw
from tide_core.training.steps import DrawnStep, ask_steps
from workers.teachers.engine import EngineSettings, TeacherEngine
from workers.teachers.streams import Streams

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
    found["expert_loop_seconds"] = median_seconds(partial(looped.hidden_states, ids), repeats=repeats)
    found["grouped_over_loop"] = found["expert_loop_seconds"] / found["mixture"]["seconds"]
    return found


def engine(
    sizes: Sizes, device: str, *, repeats: int, backend: str = "inductor", requests: int = 24
) -> dict[str, Any]:
    """A queue of questions through the dense teacher's engine: one forward after the other, with inputs and
    answers on streams of their own, and with compiled layers besides.

    Args:
        sizes: length and batch of a question.
        device: of the teacher.
        repeats: of each, the first two in turns; compiling changes the model for good.
        backend: of `torch.compile`.
        requests: questions that wait at once.
    """
    model = teacher("dense", sizes, dtype=device_dtype(device), device=device)
    questions = _questions(sizes, requests)
    settings = EngineSettings(max_batch_tokens=2 * sizes.batch * sizes.length)
    common: dict[str, Any] = {"fingerprint": "", "tokenizer_fingerprint": "", "settings": settings}
    serial = TeacherEngine(model, streams=Streams(), **common)
    streamed = TeacherEngine(model, **common)
    spent = alternate(
        {
            "serial": partial(_answer_all, serial, questions),
            "streams": partial(_answer_all, streamed, questions),
        },
        repeats=repeats,
    )
    compile_layers(model, backend)
    # Two rounds to compile for any shape before it counts.
    spent["compiled"] = median_seconds(partial(_answer_all, streamed, questions), repeats=repeats, warmup=2)
    for each in (serial, streamed):
        each.close()
    tokens = requests * sizes.batch * sizes.length
    return {
        "seconds": spent,
        "tokens_per_second": {name: tokens / seconds for name, seconds in spent.items()},
        "streams_over_serial": spent["serial"] / spent["streams"],
        "compiled_over_eager": spent["streams"] / spent["compiled"],
    }


def _questions(sizes: Sizes, requests: int) -> list[ScoreRequest]:
    """Distinct questions of pipeline B: hidden states in the staircase layout."""
    scenario = SCENARIOS["kl"]
    asked = recipe(scenario, sizes)
    rows = samples(scenario, sizes, requests)
    drawn = [[draw(row, 0, asked) for row in batch_of(rows, sizes, number)] for number in range(requests)]
    batches = [collate(each, asked, mask_token_id=sizes.mask_id) for each in drawn]
    return [batch.request for batch in batches if batch.request is not None]


def _answer_all(served: TeacherEngine, questions: Sequence[ScoreRequest]) -> None:
    for future in [served.submit(question) for question in questions]:
        future.result()


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

    def draw_step(number: int) -> DrawnStep:
        return DrawnStep(number, [arm.draw_batch(batch_of(rows, sizes, number))])

    waited = begun = 0.0
    with Prefetcher(arm.transport, ask_steps(draw_step, range(number_of_steps + WARM_STEPS)), 2) as answered:
        for step in answered:
            if step.payload.number == WARM_STEPS:
                synchronise()
                begun = time.perf_counter()
            if step.payload.number >= WARM_STEPS:
                waited += step.teacher_wait_seconds
            (batch,), (answer,) = step.payload.batches, step.payload.pair_answers(step.responses)
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
        "engine": engine(sizes, device, repeats=repeats),
        "steps": [steps(scenario, sizes, device, repeats=repeats) for scenario in chosen],
        "waiting": {
            scenario.name: waiting(scenario, sizes, device, number_of_steps=2 * repeats)
            for scenario in chosen
        },
    }

"""The training step: Tide's own against the naive one, in turns; memory in a process of its own.

Run: ``python -m benchmarks.step time SCENARIO`` or ``... memory SCENARIO --arm ARM``, with sizes as flags.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from benchmarks.arms import Arm, make_arm
from benchmarks.measuring import PeakMemory, alternate, in_a_fresh_process, median_seconds
from benchmarks.scenario import SCENARIOS, Scenario, Sizes, as_json, batch_of, samples
from tide_core.data.samples import PreparedSample

ARMS = ("naive", "tide")
LEARNING_RATE = 1e-4
STRETCH = 8
"""Steps of a turn. The first of them waits for its teacher: a long run would be a little faster."""
MODULE = "benchmarks.step"
WARM_SIZES = Sizes(
    vocab=64, length=64, batch=2, block=16, hidden=16, layers=1, teacher_hidden=16, teacher_layers=2
)
"""A step of these sizes loads what is loaded on first use, so that it is not counted as the step's memory."""


def time_both(
    scenario: Scenario, sizes: Sizes, *, repeats: int, warmup: int, device: str, stretch: int = STRETCH
) -> dict[str, Any]:
    """Median seconds of a step of both arms, taken in turns, and how far their first losses lie apart.

    A turn is a stretch of steps that begins with nothing asked and ends with nothing under way, so that what
    Tide's arm does ahead falls into its own time.
    """
    arms = {name: _arm(name, scenario, sizes, device) for name in ARMS}
    rows = samples(scenario, sizes, (warmup + repeats) * stretch)
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    calls = {name: _running(arm, rows, sizes, losses[name], stretch) for name, arm in arms.items()}
    taken = {
        name: spent / stretch for name, spent in alternate(calls, repeats=repeats, warmup=warmup).items()
    }
    for arm in arms.values():
        arm.close()
    return {
        "scenario": scenario.name,
        "sizes": as_json(sizes),
        "repeats": repeats,
        "steps_a_turn": stretch,
        "seconds": taken,
        "ratio": taken["naive"] / taken["tide"],
        # Before the first update both arms hold the same weights.
        "loss_difference": abs(losses["naive"][0] / losses["tide"][0] - 1.0),
        "tokens_per_second": {name: sizes.batch * sizes.length / spent for name, spent in taken.items()},
    }


def time_one(
    name: str, scenario: Scenario, sizes: Sizes, *, repeats: int, warmup: int, device: str
) -> dict[str, Any]:
    """Median seconds of a step of one arm, where both do not fit into one process."""
    arm = _arm(name, scenario, sizes, device)
    rows = samples(scenario, sizes, (warmup + repeats) * STRETCH)
    losses: list[float] = []
    spent = (
        median_seconds(_running(arm, rows, sizes, losses, STRETCH), repeats=repeats, warmup=warmup) / STRETCH
    )
    arm.close()
    return {"scenario": scenario.name, "arm": name, "seconds": spent, "first_loss": losses[0]}


def peak_memory(
    name: str, scenario: Scenario, sizes: Sizes, *, steps: int = 3, device: str = "cpu"
) -> dict[str, Any]:
    """Peak bytes of one arm's steps above weights, gradients and optimiser states, in this process."""
    warm = _arm(name, scenario, WARM_SIZES, device)
    warm.step(batch_of(samples(scenario, WARM_SIZES, 1), WARM_SIZES, 0), LEARNING_RATE)
    warm.close()
    arm = _arm(name, scenario, sizes, device)
    rows = samples(scenario, sizes, steps)
    lasting = _allocate_lasting(arm.optimizer)
    with PeakMemory(device) as peak:
        # A step frees the gradients at its start: they are counted with the weights.
        arm.run([batch_of(rows, sizes, number) for number in range(steps)], LEARNING_RATE)
    arm.close()
    return {
        "scenario": scenario.name,
        "arm": name,
        "sizes": as_json(sizes),
        "bytes": peak.bytes,
        "lasting_bytes": lasting,
    }


def measure_memory(name: str, scenario: Scenario, sizes: Sizes) -> dict[str, Any]:
    """:func:`peak_memory` in a fresh process."""
    found: dict[str, Any] = in_a_fresh_process(
        MODULE, ["memory", scenario.name, "--arm", name, *as_flags(sizes)], memory=True
    )
    return found


def measure_time(
    scenario: Scenario, sizes: Sizes, *, repeats: int, warmup: int = 1, stretch: int = STRETCH
) -> dict[str, Any]:
    """:func:`time_both` in a fresh process with the allocator settings of a trainer."""
    counts = ["--repeats", str(repeats), "--warmup", str(warmup), "--stretch", str(stretch)]
    found: dict[str, Any] = in_a_fresh_process(MODULE, ["time", scenario.name, *counts, *as_flags(sizes)])
    return found


def compare(scenario: Scenario, sizes: Sizes, *, repeats: int, stretch: int) -> dict[str, Any]:
    """Time and memory of both arms."""
    result = measure_time(scenario, sizes, repeats=repeats, stretch=stretch)
    memory = {name: measure_memory(name, scenario, sizes)["bytes"] for name in ARMS}
    return result | {"peak_bytes": memory, "memory_share": memory["tide"] / memory["naive"]}


def vocabulary_growth(scenario: Scenario, vocabularies: tuple[int, ...]) -> list[dict[str, Any]]:
    """Peak memory of Tide's step at several vocabularies, all else equal."""
    return [measure_memory("tide", scenario, replace(Sizes(), vocab=vocab)) for vocab in vocabularies]


def as_flags(sizes: Sizes) -> list[str]:
    """The sizes as command-line flags."""
    return [
        part
        for item in fields(sizes)
        for part in (f"--{item.name.replace('_', '-')}", str(getattr(sizes, item.name)))
    ]


def add_size_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a size."""
    for item in fields(Sizes):
        kind = type(item.default)
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=kind, default=item.default)


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes that the flags say."""
    return Sizes(**{item.name: getattr(arguments, item.name) for item in fields(Sizes)})


def _arm(name: str, scenario: Scenario, sizes: Sizes, device: str) -> Arm:
    is_cpu = device == "cpu"
    return make_arm(
        name,
        scenario,
        sizes,
        device=device,
        teacher_dtype=torch.float32 if is_cpu else torch.bfloat16,
        autocast=None if is_cpu else torch.bfloat16,
    )


def _running(
    arm: Arm, rows: list[PreparedSample], sizes: Sizes, losses: list[float], stretch: int
) -> Callable[[], object]:
    """A call that takes the next stretch of steps; each arm goes through the same samples."""

    def call() -> None:
        first = len(losses)
        steps = [batch_of(rows, sizes, first + number) for number in range(stretch)]
        losses.extend(arm.run(steps, LEARNING_RATE))

    return call


def _allocate_lasting(optimizer: torch.optim.Optimizer) -> int:
    """Make gradients and optimiser states exist and be touched; their bytes, with the weights'."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
        weight.grad.add_(0.0)
    optimizer.step()
    states = [state for entry in optimizer.state.values() for state in entry.values()]
    held = [*weights, *(weight.grad for weight in weights if weight.grad is not None), *states]
    return sum(tensor.numel() * tensor.element_size() for tensor in held if isinstance(tensor, torch.Tensor))


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "one", "memory"])
    parser.add_argument("scenario", choices=list(SCENARIOS))
    parser.add_argument("--arm", choices=ARMS, default="tide")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--stretch", type=int, default=STRETCH, help="steps of a turn")
    parser.add_argument("--device", default="cpu")
    add_size_flags(parser)
    arguments = parser.parse_args()
    scenario, sizes = SCENARIOS[arguments.scenario], sizes_of(arguments)
    if arguments.what == "memory":
        result = peak_memory(arguments.arm, scenario, sizes, device=arguments.device)
    else:
        counts = {"repeats": arguments.repeats, "warmup": arguments.warmup}
        if arguments.what == "one":
            result = time_one(arguments.arm, scenario, sizes, **counts, device=arguments.device)
        else:
            result = time_both(scenario, sizes, **counts, device=arguments.device, stretch=arguments.stretch)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""All benchmarks by one command: ``python -m benchmarks [--quick] [--gpu] [--only PART ...] [--out FOLDER]``.

Writes ``results.json`` and plots to a folder, and prints what was reached of the stated aims.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu
from benchmarks.aims import table
from benchmarks.control_plane import run as control_plane
from benchmarks.measuring import in_a_fresh_process, machine, seconds
from benchmarks.plots import draw_all
from benchmarks.scenario import SCENARIOS, Sizes
from benchmarks.step import STRETCH, compare, measure_time, vocabulary_growth

AIMED = ("reverse_calm", "tidal_compdemo")
REPEATS = 3
SHORT_STRETCH = 3
"""Steps of a turn where no aim is stated, or only the shape of a curve is looked for."""
TOKENS_OF_A_BATCH = 2048


def step(*, is_quick: bool) -> dict[str, Any]:
    """Every scenario at the stated sizes; when quick, those with an aim."""
    names = AIMED if is_quick else tuple(SCENARIOS)
    return {
        name: compare(
            SCENARIOS[name], Sizes(), repeats=REPEATS, stretch=STRETCH if name in AIMED else SHORT_STRETCH
        )
        for name in names
    }


def vocabulary_memory(*, is_quick: bool) -> list[dict[str, Any]]:
    """Peak memory of the step as the vocabulary grows."""
    vocabularies = (32_000, 152_000) if is_quick else (2_000, 8_000, 32_000, 80_000, 152_000)
    return vocabulary_growth(SCENARIOS["reverse_calm"], vocabularies)


def growth(*, is_quick: bool) -> dict[str, Any]:
    """Both arms as one size grows: length (as many tokens a batch), batch, vocabulary."""
    scenario, sizes = SCENARIOS["tidal_compdemo"], Sizes()
    lengths = [replace(sizes, length=n, batch=TOKENS_OF_A_BATCH // n) for n in (128, 256, 512, 1024, 2048)]
    batches = [replace(sizes, batch=n) for n in (1, 2, 4, 8, 16)]
    short = replace(sizes, length=128, batch=4)
    vocabularies = [replace(short, vocab=n) for n in (2_000, 8_000, 32_000, 152_000)]
    curves = {"length": lengths, "batch": batches, "vocab": vocabularies}
    return {
        axis: [
            measure_time(scenario, each, repeats=1 if is_quick else REPEATS, stretch=SHORT_STRETCH)
            for each in curve
        ]
        for axis, curve in curves.items()
    }


def all_pieces(*, is_quick: bool) -> dict[str, Any]:
    """The pieces, each on its own."""
    repeats = 5 if is_quick else 9
    found: dict[str, Any] = in_a_fresh_process("benchmarks.pieces", ["--repeats", str(repeats)])
    return found


def system(*, is_quick: bool) -> dict[str, Any]:
    """Trainers and teachers over Ray Serve."""
    found: dict[str, Any] = in_a_fresh_process("benchmarks.system", ["--quick"] if is_quick else [])
    return found


def control(*, is_quick: bool) -> dict[str, Any]:
    """The control plane over HTTP."""
    return control_plane(50 if is_quick else 200, None)


PARTS: dict[str, Callable[..., Any]] = {
    "step": step,
    "vocabulary_memory": vocabulary_memory,
    "pieces": all_pieces,
    "system": system,
    "control_plane": control,
    "growth": growth,
}
NOT_QUICK = {"growth"}


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes: under ten minutes")
    parser.add_argument("--gpu", action="store_true", help="the true sizes, on CUDA")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), help="these parts alone")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here: run `make bench` for the CPU.")
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine("cuda" if options.gpu else "cpu")}
    if options.gpu:
        results["gpu"] = gpu.measure()
    else:
        chosen = options.only or [name for name in PARTS if not (options.quick and name in NOT_QUICK)]
        for name in chosen:
            spent = seconds(lambda name=name: _run(name, results, is_quick=options.quick))  # type: ignore[misc]
            print(f"{name}: {spent:.0f} s", flush=True)
    _write(results, options.out)
    print(table(results))


def _run(name: str, results: dict[str, Any], *, is_quick: bool) -> None:
    results[name] = PARTS[name](is_quick=is_quick)


def _write(results: dict[str, Any], folder: Path) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results: {path}")
    if importlib.util.find_spec("matplotlib") is None:
        print("plots: none, matplotlib is not installed (it comes with the extra 'dev')")
        return
    for picture in draw_all(results, folder):
        print(f"plot: {picture}")


if __name__ == "__main__":
    main()

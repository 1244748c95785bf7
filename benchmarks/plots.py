"""Pictures of the results; matplotlib is a development extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Results = dict[str, Any]


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Write one PNG for each part of the results that has a picture; the paths."""
    written = []
    if "step" in results:
        written.append(_steps(results, folder / "step.png"))
    for axis, rows in results.get("growth", {}).items():
        written.append(_growth(axis, rows, results["machine"], folder / f"growth-{axis}.png"))
    if "vocabulary_memory" in results:
        written.append(_vocabulary(results, folder / "vocabulary-memory.png"))
    if len(results.get("system", {}).get("scaling", [])) > 1:
        written.append(_scaling(results, folder / "scaling.png"))
    return written


def _figure(title: str, machine: dict[str, Any]) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.set_title(title)
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['date'][:10]}, {machine['commit']}"
    figure.text(0.01, 0.01, where, fontsize=6)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _steps(results: Results, path: Path) -> Path:
    figure, axes = _figure("Seconds of a training step (median)", results["machine"])
    names = list(results["step"])
    for offset, arm in ((-0.2, "naive"), (0.2, "tide")):
        heights = [results["step"][name]["seconds"][arm] for name in names]
        axes.bar([place + offset for place in range(len(names))], heights, width=0.4, label=arm)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7)
    axes.set_ylabel("seconds")
    axes.legend()
    return _save(figure, path)


def _growth(axis: str, rows: Sequence[dict[str, Any]], machine: dict[str, Any], path: Path) -> Path:
    figure, axes = _figure(f"A step as the {axis} grows ({rows[0]['scenario']})", machine)
    places = [row["sizes"][axis] for row in rows]
    for arm in ("naive", "tide"):
        axes.plot(places, [row["seconds"][arm] for row in rows], marker="o", label=arm)
    axes.set_xlabel(axis)
    axes.set_ylabel("seconds")
    axes.set_xscale("log", base=2)
    axes.legend()
    return _save(figure, path)


def _vocabulary(results: Results, path: Path) -> Path:
    figure, axes = _figure("Peak memory of Tide's step above weights and gradients", results["machine"])
    rows = results["vocabulary_memory"]
    axes.plot([row["sizes"]["vocab"] for row in rows], [row["bytes"] / 2**20 for row in rows], marker="o")
    axes.set_xlabel("vocabulary")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    return _save(figure, path)


def _scaling(results: Results, path: Path) -> Path:
    rows = results["system"]["scaling"]
    speed = rows[0]["teacher_speed"]
    figure, axes = _figure(f"Trainers on a replica that can feed {speed:g}", results["machine"])
    trainers = [row["trainers"] for row in rows]
    axes.plot(trainers, [row["throughput_ratio"] for row in rows], marker="o", label="measured")
    axes.plot(trainers, [min(count, speed) for count in trainers], linestyle="--", label="ideal")
    axes.set_xlabel("trainers")
    axes.set_ylabel("throughput, times one trainer")
    axes.legend()
    return _save(figure, path)

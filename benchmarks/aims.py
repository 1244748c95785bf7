"""The stated aims, and what the results say about each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Results = dict[str, Any]


@dataclass(frozen=True)
class Aim:
    """A figure to reach.

    Attributes:
        name: what is measured.
        bound: the figure.
        side: whether the value should lie at or above (``min``) or at or below (``max``) it.
        read: finds the value in the results; raises KeyError where that part was not run.
        unit: for the table.
    """

    name: str
    bound: float
    side: Literal["min", "max"]
    read: Callable[[Results], float]
    unit: str = ""

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the bound."""
        return value >= self.bound if self.side == "min" else value <= self.bound


@dataclass(frozen=True)
class Finding:
    """An aim with its value."""

    aim: Aim
    value: float

    @property
    def is_met(self) -> bool:
        return self.aim.is_met(self.value)


def _step(name: str, field: str) -> Callable[[Results], float]:
    return lambda results: float(results["step"][name][field])


def _growth(results: Results) -> float:
    peaks = {row["sizes"]["vocab"]: row["bytes"] for row in results["vocabulary_memory"]}
    return float(peaks[152_000] / peaks[32_000] - 1.0)


def _excess_bytes(results: Results) -> float:
    rows = results["pieces"]["wire"].values()
    return float(max(row["bytes_per_masked_token"] / row["promised"] - 1.0 for row in rows))


def _two_trainers(results: Results) -> float:
    rows = results["system"]["scaling"]
    return float(next(row["throughput_ratio"] for row in rows if row["trainers"] == 2))


AIMS = (
    Aim("Reverse CALM step, times faster than naive", 3.0, "min", _step("reverse_calm", "ratio")),
    Aim("TIDAL + CompDemo step, times faster than naive", 3.5, "min", _step("tidal_compdemo", "ratio")),
    Aim("Reverse CALM peak memory, share of naive", 0.25, "max", _step("reverse_calm", "memory_share")),
    Aim("TIDAL + CompDemo peak memory, share of naive", 0.25, "max", _step("tidal_compdemo", "memory_share")),
    Aim("Growth of step memory, vocabulary 32k to 152k", 0.15, "max", _growth),
    Aim(
        "Alignment, times faster than the loop",
        30.0,
        "min",
        lambda results: float(results["pieces"]["alignment"]["ratio_to_collator"]),
    ),
    Aim(
        "Chunking, tokens a second and core",
        5e6,
        "min",
        lambda results: float(results["pieces"]["alignment"]["tokens_per_second"]["chunking"]),
    ),
    Aim("Bytes on the wire beyond the promised", 0.05, "max", _excess_bytes),
    Aim(
        "Wait ratio, teacher 20% faster than needed",
        0.05,
        "max",
        lambda results: float(results["system"]["wait"]["wait_ratio"]),
    ),
    Aim("Throughput of two trainers on one replica", 1.8, "min", _two_trainers),
    Aim(
        "Eight jobs' shares, largest deviation",
        0.10,
        "max",
        lambda results: float(results["system"]["shares"][-1]["largest_deviation"]),
    ),
    Aim(
        "Study of six variants, teacher compute of one job",
        1.3,
        "max",
        lambda results: float(results["system"]["study"]["ratio"]),
    ),
    Aim(
        "Round trip beyond compute, median",
        3.0,
        "max",
        lambda results: float(results["system"]["round_trip"]["median_ms"]),
        "ms",
    ),
    Aim(
        "Dense teacher forward, share of the matrix peak",
        0.5,
        "min",
        lambda results: float(results["gpu"]["forwards"]["dense"]["share_of_peak"]),
    ),
    Aim(
        "Mixture forward, times faster than the expert loop",
        10.0,
        "min",
        lambda results: float(results["gpu"]["forwards"]["grouped_over_loop"]),
    ),
)


def findings(results: Results) -> Iterator[Finding]:
    """Every aim whose part was run."""
    for aim in AIMS:
        try:
            yield Finding(aim, aim.read(results))
        except KeyError:
            continue


def table(results: Results) -> str:
    """The findings as a Markdown table."""
    lines = ["| figure | aim | measured | |", "| --- | --- | --- | --- |"]
    for found in findings(results):
        sign = ">=" if found.aim.side == "min" else "<="
        unit = f" {found.aim.unit}" if found.aim.unit else ""
        verdict = "reached" if found.is_met else "missed"
        lines.append(
            f"| {found.aim.name} | {sign} {found.aim.bound:g}{unit} | {found.value:.3g}{unit} | {verdict} |"
        )
    return "\n".join(lines)

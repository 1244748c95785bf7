"""The dashboards as pictures, for places without a Grafana: Prometheus' answers drawn with matplotlib.

`python -m tools.render_dashboards http://127.0.0.1:9090 --job JOB --minutes 15 --to folder` writes one PNG a
dashboard. The panels, queries, units and thresholds are those of `dashboards.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image

from tools.dashboards import PAGES, Page, Panel, with_variables

_COLUMNS = 2
_MOST_LEGENDS = 9
_POINTS = 300
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Window:
    """What of a Prometheus is shown.

    Attributes:
        url: of the Prometheus.
        start: Unix seconds.
        end: Unix seconds.
        job_id: regular expression of jobs.
        application: regular expression of teacher pools.
    """

    url: str
    start: float
    end: float
    job_id: str = ".*"
    application: str = ".*"

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gives.

        Raises:
            urllib.error.HTTPError: Prometheus does not understand the query.
        """
        parameters = {
            "query": with_variables(query, self.job_id, self.application),
            "start": self.start,
            "end": self.end,
            "step": max(1.0, (self.end - self.start) / _POINTS),
        }
        address = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def render(name: str, window: Window, target: Path) -> None:
    """Draw one dashboard into a PNG file."""
    page: Page = PAGES[name]
    rows = math.ceil(len(page.panels) / _COLUMNS)
    figure, grid = pyplot.subplots(
        rows, _COLUMNS, figsize=(15, 2.4 * rows + 0.5), squeeze=False, layout="constrained"
    )
    figure.suptitle(page.title, fontsize=13, x=0.01, ha="left")
    for axes, panel in zip(grid.flat, page.panels, strict=False):
        _draw(axes, panel, window)
    for axes in list(grid.flat)[len(page.panels) :]:
        axes.axis("off")
    target.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    pyplot.close(figure)
    # Lines need few colours: a palette takes a third of the bytes. This method keeps the rare ones.
    picture = Image.open(drawn).convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE)
    picture.save(target, optimize=True)


def _draw(axes: Axes, panel: Panel, window: Window) -> None:
    lines = [
        (_legend(legend, series["metric"]), series["values"])
        for legend, query in panel.queries.items()
        for series in window.ask(query)
    ]
    drawn = [(legend, _finite(values, window)) for legend, values in lines]
    # What is always 0 comes last: its name may be left out of the legend.
    curves = sorted((curve for curve in drawn if curve[1]), key=lambda curve: not _rises(curve[1]))
    axes.set_prop_cycle(color=[*_palette("tab10", 10), *_palette("Dark2", 8)])
    for number, (legend, points) in enumerate(curves):
        label = legend if number < _MOST_LEGENDS else None
        # A single sample, or one between gaps, would be an invisible line.
        axes.plot(*zip(*points, strict=True), label=label, lw=1.2, marker=".", markersize=2.5)
    if len(curves) > _MOST_LEGENDS:
        axes.plot([], [], " ", label=f"and {len(curves) - _MOST_LEGENDS} more")
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, lw=0.5)
    axes.set_xlim(0, window.end - window.start)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_seconds))
    axes.spines[["top", "right"]].set_visible(False)
    if not curves:
        why = f"no data: {panel.absent}" if panel.absent else "no data"
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color="grey", fontsize=9)
        axes.set_yticks([])
        return
    axes.set_ylim(bottom=0 if axes.get_ylim()[0] >= -0.05 * axes.get_ylim()[1] else None)
    if not any(_rises(points) for _, points in curves):
        axes.set_ylim(0, 1)
    _unit(axes, panel.unit)
    top = axes.get_ylim()[1]
    if panel.red_above is not None and panel.red_above <= 1.5 * top:
        axes.axhline(panel.red_above, color="red", lw=0.8, ls="--")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False)


def _finite(values: list[tuple[float, str]], window: Window) -> list[tuple[float, float]]:
    """The points of a series: seconds since the start, and the value."""
    points = [(at - window.start, float(value)) for at, value in values]
    return [(at, value) for at, value in points if math.isfinite(value)]


def _palette(name: str, count: int) -> list[tuple[float, ...]]:
    """The colours of one of matplotlib's qualitative palettes."""
    return [tuple(matplotlib.colormaps[name](number)) for number in range(count)]


def _rises(points: list[tuple[float, float]]) -> bool:
    return any(value != 0 for _, value in points)


def _legend(legend: str, labels: dict[str, str]) -> str:
    return _LEGEND.sub(lambda found: labels.get(found[1], ""), legend)


def _unit(axes: Axes, unit: str) -> None:
    match unit:
        case "percentunit":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        case "s":
            axes.yaxis.set_major_formatter(FuncFormatter(_seconds))
        case "bytes":
            axes.yaxis.set_major_formatter(FuncFormatter(_bytes))
        case "reqps":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}/s"))
        case "sci":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}"))
        case "short":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        case _:
            raise ValueError(f"no way to write the unit {unit!r}: add it here")
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _seconds(value: float, _: object = None) -> str:
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value * 1000:.3g} ms" if 0 < abs(value) < 1 else f"{value:.3g} s"


def _bytes(value: float, _: object = None) -> str:
    for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} B"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("--job", default=".*", help="regular expression of the jobs shown")
    parser.add_argument("--application", default=".*", help="regular expression of the pools shown")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back")
    parser.add_argument("--to", type=Path, default=Path(), help="folder of the pictures")
    asked = parser.parse_args()
    now = time.time()
    window = Window(asked.url, now - 60 * asked.minutes, now, asked.job, asked.application)
    for name in PAGES:
        render(name, window, asked.to / f"{name}.png")


if __name__ == "__main__":
    main()

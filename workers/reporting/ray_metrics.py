"""Metrics out of a Ray process: declared in `tide_core.contracts.metrics`, exported by the node's Ray agent.

Ray puts `ray_` before every name; Tide's Prometheus configuration takes it off again. A gauge that is not
set again within two of Ray's report intervals (20 s) loses its series, a counter keeps it as long as the node
lives. Verified against Ray 2.60.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol

from tide_core.contracts.metrics import Metric


class MetricSink(Protocol):
    """Takes what is to be exported. Safe to use from several threads."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Add to a counter, observe with a histogram, or set a gauge.

        Args:
            metric: which one.
            value: in its unit; nothing is added to a counter for 0.
            labels: values, in the order of the metric's labels.
        """
        ...


class RaySink:
    """Exports through the Ray agent of this node."""

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """See `MetricSink`."""
        instrument = self._instruments.get(metric.name) or self._instruments.setdefault(
            metric.name, _instrument(metric)
        )
        tags = dict(zip(metric.labels, labels, strict=True))
        match metric.kind:
            case "counter":
                if value:
                    instrument.inc(value, tags)
            case "gauge":
                instrument.set(value, tags)
            case "histogram":
                instrument.observe(value, tags)


class MemorySink:
    """Keeps the values: counters summed, gauges as set last, histograms as lists. For tests."""

    def __init__(self) -> None:
        self.totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self.values: dict[tuple[str, ...], float] = {}
        self.observed: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """See `MetricSink`; the key is the name with the values of the labels."""
        assert len(labels) == len(metric.labels), f"{metric.name} takes {metric.labels}, not {labels}"
        key = (metric.name, *labels)
        match metric.kind:
            case "counter":
                self.totals[key] += value
            case "gauge":
                self.values[key] = value
            case "histogram":
                self.observed[key].append(value)


def _instrument(metric: Metric) -> Any:
    from ray.util import metrics

    match metric.kind:
        case "counter":  # Ray appends the suffix itself
            return metrics.Counter(metric.name.removesuffix("_total"), metric.meaning, metric.labels)
        case "gauge":
            return metrics.Gauge(metric.name, metric.meaning, metric.labels)
        case "histogram":
            return metrics.Histogram(metric.name, metric.meaning, list(metric.buckets), metric.labels)

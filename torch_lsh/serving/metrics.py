"""Counters, gauges and histograms in the text format of Prometheus (version 0.0.4).

The format is lines of text; prometheus_client would be a dependency for them. Not thread-safe: of one event loop.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4"


class Counter:
    """A number that grows, one for each value of a label where it has one."""

    def __init__(self, name: str, help: str, label: str | None = None) -> None:
        self.name, self.help, self.label = name, help, label
        self.values: dict[str, float] = {} if label else {"": 0.0}

    def add(self, amount: float = 1, of: str = "") -> None:
        self.values[of] = self.values.get(of, 0.0) + amount

    def lines(self) -> list[str]:
        values = sorted(self.values.items())
        labels = (f'{{{self.label}="{of}"}}' if self.label else "" for of, _ in values)
        return [*_head(self, "counter"), *(f"{self.name}{of} {value:.15g}" for of, (_, value) in zip(labels, values))]


class Gauge:
    """A number that is read when it is asked for."""

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help, self.read = name, help, read

    def lines(self) -> list[str]:
        return [*_head(self, "gauge"), f"{self.name} {self.read():.15g}"]


class Histogram:
    """How many values were at most each of the bounds."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name, self.help, self.bounds = name, help, tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self) -> list[str]:
        lines, total = _head(self, "histogram"), 0
        for bound, count in zip((*(f"{bound:g}" for bound in self.bounds), "+Inf"), self.counts):
            total += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{self.name}_sum {self.sum:.15g}", f"{self.name}_count {total}"]


def _head(metric: Counter | Gauge | Histogram, kind: str) -> list[str]:
    return [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {kind}"]


def exposition(metrics: Sequence[Counter | Gauge | Histogram]) -> str:
    """The text that a scraper reads."""
    return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"

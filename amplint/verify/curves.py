"""The loss curves of a run, by the place of its backward, and their windows. Plain lists, no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amplint.verify.runs import Run

WINDOWS = 8


@dataclass
class Curve:
    """The losses of one backward: each with the attempt to step that came after it."""

    site: str
    values: list[float] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)


def value(said: Any) -> float:
    """A number of a record; what is not finite comes as a word, what is not known as null."""
    return math.nan if said is None else float(said)


def curves(run: Run) -> list[Curve]:
    """The curves in the order in which their places first ran a backward."""
    found: dict[str, Curve] = {}
    for attempt, step in enumerate(run.steps):
        for site, loss in step["losses"]:
            curve = found.setdefault(site, Curve(site))
            curve.values.append(value(loss))
            curve.attempts.append(attempt)
    return list(found.values())


def main_steps(run: Run) -> list[dict[str, Any]]:
    """The attempts of the optimizer that stepped first: the one whose steps are counted."""
    return [step for step in run.steps if step["optimizer"] == run.steps[0]["optimizer"]]


def skipped(run: Run) -> list[int]:
    """Which of these attempts changed nothing."""
    return [index for index, step in enumerate(main_steps(run)) if step["skipped"]]


def bounds(count: int) -> list[tuple[int, int]]:
    """The windows of a curve: eight, or fewer of at least two values."""
    number = max(1, min(WINDOWS, count // 2))
    return [(count * index // number, count * (index + 1) // number) for index in range(number)]


def windows(values: Sequence[float], places: Sequence[tuple[int, int]]) -> list[float]:
    """The mean of each window; values that are not finite are left out."""
    return [mean([one for one in values[low:high] if math.isfinite(one)]) for low, high in places]


def scatter(values: Sequence[float]) -> float:
    """How far a value is from the one before it, without the trend: the noise from batch to batch of one run."""
    steps = sorted(abs(b - a) for a, b in itertools.pairwise(values) if math.isfinite(a + b))
    return steps[len(steps) // 2] / (0.6745 * math.sqrt(2)) if steps else 0.0  # from the median, for a normal one


def mean(values: Sequence[float]) -> float:
    """Of some numbers; of none, nan."""
    return math.fsum(values) / len(values) if values else math.nan

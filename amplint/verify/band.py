"""How far AMP's loss curve may be from FP32's, window by window. Plain lists, no torch.

What is left between the two, with the same weights at the start, the same batches and the same steps, is rounding, and
what training makes of it. That is measured: FP32 runs whose weights are off by a rounding in each forward and backward,
another one each time, are as far from FP32 as rounding alone drives this script. AMP may be four times as far as the
farthest of them is in a window or in one beside it; never farther than half as much again as FP32's seeds are from each
other; and always 0.2 % of the loss (of its mean over the run, where it is below that) in FP16 and 1 % in BF16.

Without such runs of FP32 the seeds' spread is the measure, and the floor is what rounding may add up to: half's epsilon
is 0.1 % in FP16 and 0.8 % in BF16, ten operations in a row make about ten times that, and half of it is left after the
mean over a batch, so 1 % and 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from amplint.verify.curves import Curve, mean, scatter, windows

FLOORS = {"float16": 0.01, "bfloat16": 0.05}  # share of the loss
_MEASURED = 0.2  # of these, where FP32 runs tell what rounding does
_FARTHER = 4.0  # times that AMP may be from FP32 than rounding alone
_WIDER = 1.5  # times the spread of a few runs, which is itself uncertain

Places = Sequence[tuple[int, int]]  # windows of a curve
Numbers = Sequence[float]


@dataclass(frozen=True)
class Band:
    """A number for each window."""

    size: list[float]  # of FP32's loss
    noise: list[float]  # what AMP may be apart from FP32
    drift: list[float]  # what one run may be by rounding alone; empty where that was not measured
    floor: list[float]  # what is always allowed
    why: str  # what `noise` is

    def agreed(self, apart: Sequence[Numbers]) -> tuple[list[float], list[float]]:
        """What AMP's seeds agree on being apart by, and what is allowed. Drift has another sign from another seed:
        their mean is judged where they have the same. But where rounding explains the course of none of them, the
        first is."""
        if self.drift and not any(self._drifted(way) for way in apart):
            return list(apart[0]), [max(pair) for pair in zip(self.noise, self.floor, strict=True)]
        allowed = [max(a / math.sqrt(len(apart)), b) for a, b in zip(self.noise, self.floor, strict=True)]
        columns = list(zip(*apart, strict=True))
        return [mean(one) if min(one) > 0 or max(one) < 0 else 0.0 for one in columns], allowed

    def _drifted(self, way: Numbers) -> bool:
        """Whether rounding alone explains all of a course."""
        return all(abs(one) <= max(may) for one, *may in zip(way, self.drift, self.floor, strict=True))


def band(seeds: Sequence[Curve], rounded: Sequence[tuple[Curve, Curve]], places: Places, dtype: str) -> Band:
    """The band of a curve. `seeds`: FP32's; `rounded`: runs that are off by a rounding, each with that which is not."""
    means = [windows(curve.values, places) for curve in seeds]
    level = mean([abs(one) for one in seeds[0].values if math.isfinite(one)])
    size = [max(abs(one), level) for one in means[0]]  # a loss that came down to nothing need not be as near
    noise, why = _noise(means, seeds[0].values, places), f"what {len(seeds)} FP32 seeds differ by"
    floor = [FLOORS[dtype] * one for one in size]
    if not rounded:
        return Band(size, noise, [], floor, why)
    drift = _drift([between(one, other, places) for one, other in rounded])
    idle = sum(noise) <= sum(drift) / _FARTHER  # the script's seeds do nothing
    if idle or sum(noise) >= sum(drift):
        why = f"{_FARTHER:g} times as far as rounding alone moves FP32"
    noise = drift if idle else list(map(min, noise, drift))
    return Band(size, noise, drift, [_MEASURED * one for one in floor], why)


def between(one: Curve, other: Curve, places: Places) -> list[float]:
    """How far the windows of one curve are above the other's."""
    return [a - b for a, b in zip(windows(one.values, places), windows(other.values, places), strict=True)]


def _drift(ways: Sequence[Numbers]) -> list[float]:
    """How far AMP may be from FP32 in each window, by how far rounding alone is."""
    return [_FARTHER * one for one in _beside([max(map(abs, column)) for column in zip(*ways, strict=True)])]


def _noise(means: Sequence[Numbers], values: Numbers, places: Places) -> list[float]:
    """What runs of FP32 differ by in each window. Of one seed, what its batches tell."""
    if len(means) == 1:
        return [4 * math.sqrt(2 / (high - low)) * scatter(values) for low, high in places]
    finite = [[one for one in column if math.isfinite(one)] or [0.0] for column in zip(*means, strict=True)]
    return [_WIDER * one for one in _beside([max(column) - min(column) for column in finite])]


def _beside(most: Numbers) -> list[float]:
    """In each window, the most of it and of those beside it."""
    return [max(most[max(0, at - 1) : at + 2]) for at in range(len(most))]

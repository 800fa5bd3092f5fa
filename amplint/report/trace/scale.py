"""Half precision's window on a log2 axis, for range bars and histograms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from amplint.report.numbers import many

Report = dict[str, Any]


class Window(NamedTuple):
    """What a dtype can hold, as powers of two: 0 below `zero`, subnormal to `normal`, normal to `top`, then inf."""

    name: str
    zero: float
    normal: float
    top: float
    largest: float


# torch.finfo; halfway to the smallest subnormal rounds to zero
WINDOWS = {
    "float16": Window("float16", -25, -14, 16, 65504.0),
    "bfloat16": Window("bfloat16", -134, -126, 128, 3.3895313892515355e38),
}
# what a verdict rests on
VERDICTS = {
    "certain": "of any input",
    "calibrated": "measured on this batch",
    "likely": "estimated, not measured",
    "tight": "near the limit, not beyond it",
}
LOW, HIGH = -50, 21  # of the histograms: 71 bins, each a power of two


def exponent(value: float | None) -> float:
    """log2 of a magnitude; of 0, or of nothing, the axis's low end; of what is infinite or unbounded, its high end."""
    if value is None or math.isinf(value) or math.isnan(value):
        return HIGH
    return max(LOW, min(HIGH, math.log2(abs(value)))) if value else LOW


def bar(
    tiny: float | None, largest: float | None, window: Window, low: int = -30, high: int = 20, step: int = 2
) -> str:
    """A range in text, a character for `step` powers of two: `.` subnormal, `-` normal, `|` the dtype's end; `#` where
    values are, `0` those that become zero, `!` those that become inf."""
    first, last = exponent(tiny or largest), exponent(largest)
    cells = []
    for at in range(low, high, step):
        inside = first < at + step and last >= at and bool(largest)
        inside |= bool(largest) and ((at == low and last < low) or (at + step >= high and first >= high))
        if inside:
            cells.append("0" if at < window.zero else "!" if at >= window.top else "#")
        elif at <= window.top < at + step:
            cells.append("|")
        else:
            cells.append(" " if at < window.zero or at > window.top else "." if at < window.normal else "-")
    return "".join(cells)


def least(nodes: list[dict[str, Any]], window: Window) -> float | None:
    """The least headroom of some nodes' values, in bits: measured, else estimated."""
    half = [node for node in nodes if node["dtype"] == window.name]
    sizes = [node["measured"]["absmax"] if node["measured"] else node["amax"] for node in half]
    largest = max((size for size in sizes if size), default=0.0)
    return math.log2(window.largest / largest) if largest else None


def silence(gradients: dict[str, Any]) -> str:
    """Why there is too little to go by."""
    (silent, of), zero = gradients["silent"], gradients.get("zero", ())
    said = f"they are 0 at {silent} of {of} operations and parameters on this batch"
    if zero:
        names = ", ".join(zero[:2]) + (", …" if len(zero) > 2 else "")
        held = f"{many(len(zero), 'weight')} of 0 let{'s' * (len(zero) == 1)} none through"
        said += f"; {held} ({names}): train a little first"
    return said


def bits(value: float | None) -> str:
    """Headroom in bits, signed: how many times the values may double before the dtype ends."""
    return "" if value is None or math.isinf(value) else f"{value:+.1f} bits"


def where(place: dict[str, Any] | None) -> str:
    """path:row:column of a place."""
    if not place:
        return "no line of yours"
    column = f":{place['column']}" if place.get("column") else ""
    return f"{place['path']}:{place['row']}{column}"

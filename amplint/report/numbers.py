"""Numbers as people write them."""

from __future__ import annotations

import math


def number(value: float | None) -> str:
    """Three digits, as people write them: 0.0012, 65504, 1.2e+09."""
    if value is None or math.isinf(value):
        return "unbounded"
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def many(count: int, noun: str) -> str:
    """1 step, 3 steps."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def times(count: int) -> str:
    """once, 3 times."""
    return "once" if count == 1 else f"{count} times"


def share(value: float) -> str:
    """A share as a percentage: 0 %, < 0.01 %, 4.7 %."""
    if value <= 0:
        return "0 %"
    return "< 0.01 %" if value < 1e-4 else f"{100 * value:.3g} %"


def amount(count: float, unit: str = "B") -> str:
    """12345678 bytes → 12.3 MB."""
    for prefix in ("", "k", "M", "G"):
        if abs(count) < 1000 or prefix == "G":
            return f"{count:.3g} {prefix}{unit}".strip()
        count /= 1000
    return ""

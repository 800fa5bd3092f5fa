"""Pictures as SVG: a node's range, and histograms of gradients, against half precision's window."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from amplint.report.numbers import number
from amplint.report.trace.scale import HIGH, LOW, Window, exponent

_FIRST, _LAST = -40, 21  # powers of two that bars show


def _x(power: float, width: float) -> float:
    return (max(_FIRST, min(_LAST, power)) - _FIRST) / (_LAST - _FIRST) * width


def _box(start: float, end: float, width: float, top: float, height: float, kind: str) -> str:
    left, right = _x(start, width), _x(end, width)
    if right <= left:
        return ""
    return f'<rect class="{kind}" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{height}"/>'


def _window(window: Window, width: float, height: float) -> str:
    end = f'<line class="end" x1="{_x(window.top, width):.1f}" x2="{_x(window.top, width):.1f}" y1="0" y2="{height}"/>'
    return (
        _box(window.zero, window.normal, width, 0, height, "w-sub")
        + _box(window.normal, window.top, width, 0, height, "w-normal")
        + (end if window.top <= _LAST else "")
    )


def range_bar(node: dict[str, Any], window: Window, width: int, axis: bool = False) -> str:
    """A node's range: a bar from the smallest non-zero to the largest measured magnitude, a tick at the estimate of the
    largest, a thin line to the sound bound. `axis`: with its powers of two below it."""
    height = 14
    parts = [f'<rect class="track" width="{width}" height="{height}"/>', _window(window, width, height)]
    said = []
    bounds = [abs(node[key]) for key in ("low", "high") if node.get(key) is not None]
    if node.get("safe") and bounds:
        reach = exponent(max(bounds))
        parts.append(_box(_FIRST, reach, width, height / 2 - 0.5, 1, "v"))
        said.append(f"proved within {number(max(bounds))}")
    measured = node.get("measured")
    if measured and measured["absmax"]:
        first, last = exponent(measured["tiny"]), exponent(measured["absmax"])
        last = max(last, first + 0.4)
        parts.append(_box(first, min(last, window.zero), width, 4, 6, "v-low"))
        parts.append(_box(max(first, window.zero), min(last, window.top), width, 4, 6, "v"))
        parts.append(_box(max(first, window.top), last, width, 2, 10, "v-bad"))
        said.append(f"measured {number(measured['tiny'])} to {number(measured['absmax'])}")
    if node.get("amax"):
        at = _x(exponent(node["amax"]), width)
        parts.append(f'<line class="est" x1="{at:.1f}" x2="{at:.1f}" y1="1" y2="{height - 1}"/>')
        said.append(f"estimated largest {number(node['amax'])}")
    label = "; ".join(said) or "not a number in floating point, or unknown"
    if axis:
        parts.append(_ticks(width, height + 12, (-36, -25, -14, 0, 16)))
    tall = height + 16 * axis
    return (
        f'<svg role="img" aria-label="{label}" width="{width}" height="{tall}" viewBox="0 0 {width} {tall}">'
        f"<title>{label}</title>{''.join(parts)}</svg>"
    )


def _ticks(width: float, y: float, powers: Iterable[int]) -> str:
    return "".join(f'<text x="{_x(one, width):.0f}" y="{y}" text-anchor="middle">2^{one}</text>' for one in powers)


def _zones(window: Window, width: float) -> str:
    """The names of the parts of the window, where there is room for them."""
    ends = (_FIRST, window.zero, window.normal, window.top, _LAST)
    shown = []
    for name, start, end in zip(("becomes 0", "subnormal", "normal", "inf"), ends, ends[1:], strict=False):
        start, end = max(start, _FIRST), min(end, _LAST)
        if end - start >= 4:
            shown.append(f'<text x="{_x((start + end) / 2, width):.0f}" y="11" text-anchor="middle">{name}</text>')
    return "".join(shown)


def histogram(counts: list[int], window: Window, scale: float) -> str:
    """log2 magnitudes of gradients, multiplied by a loss scale, against the window. `counts`: a bin for each power of
    two from 2^-50."""
    width, height, shift = 720, 108, math.log2(scale)
    most = max(counts) or 1
    parts = [_window(window, width, height), _zones(window, width)]
    for index, count in enumerate(counts):
        start = LOW + index + shift
        tall = 84 * count / most
        if count and _FIRST <= start < _LAST:
            lost = start + 1 <= window.zero or start >= window.top
            kind = "v-bad" if start >= window.top else "v-low" if lost else "g"
            parts.append(_box(start + 0.08, start + 0.92, width, height - tall, round(tall, 1), kind))
    ticks = _ticks(width, height + 14, range(-36, HIGH, 6))
    said = f"histogram of gradient magnitudes times {number(scale)}"
    return (
        f'<svg role="img" aria-label="{said}" width="{width}" viewBox="0 0 {width} {height + 20}">'
        f"<title>{said}</title>{''.join(parts)}"
        f'<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>{ticks}</svg>'
    )


def legend(window: Window) -> str:
    """What the bars show, in words."""
    swatch = '<svg width="26" height="12">{}</svg>'
    shown = (
        ('<rect class="w-normal" width="26" height="12"/>', f"{window.name}: normal, to {number(window.largest)}"),
        ('<rect class="w-sub" width="26" height="12"/>', "subnormal: fewer bits"),
        ('<rect class="v" y="3" width="26" height="6"/>', "measured, smallest non-zero to largest"),
        ('<rect class="v-low" y="3" width="26" height="6"/>', "measured, becomes 0"),
        ('<rect class="v-bad" y="1" width="26" height="10"/>', "measured, becomes inf (taller)"),
        ('<line class="est" x1="13" x2="13" y1="1" y2="11"/>', "estimate of the largest"),
        ('<rect class="v" y="5.5" width="26" height="1"/>', "sound bound, inside the window: safe"),
    )
    return (
        '<p class="legend">'
        + "".join(f"<span>{swatch.format(picture)}{text}</span>" for picture, text in shown)
        + "</p>"
    )

"""Pictures as SVG: loss curves against FP32's noise band, costs as bars, the loss scale's course."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from amplint.report.numbers import number
from amplint.report.verify.words import finite

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 22
Points = list[tuple[int, float]]


class _Axes:
    """Steps to x, values to y: linear, or logarithmic where values span more than a hundredfold."""

    def __init__(self, steps: int, values: Sequence[float], width: int, height: int) -> None:
        self.steps, self.width, self.height = max(2, steps), width, height
        self.low, self.high = min(values), max(values)
        self.log = self.low > 0 and self.high / self.low > 100
        if self.high == self.low:
            pad = abs(self.high) * 0.05 or 1.0
            self.low, self.high = (self.low, self.high * 1.05) if self.log else (self.low - pad, self.high + pad)

    def x(self, step: float) -> float:
        return _LEFT + step / (self.steps - 1) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        return self.height - _BOTTOM - (at - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def drawn(self) -> Iterator[str]:
        left, right, bottom = _LEFT, self.width - _RIGHT, self.height - _BOTTOM
        for share in (0.0, 0.5, 1.0):
            value = self.low + share * (self.high - self.low)
            if self.log:
                value = self.low * (self.high / self.low) ** share
            y = self.y(value)
            yield f'<line class="axis" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
        ticks = sorted({0, (self.steps - 1) // 2, self.steps - 1})
        for step in ticks:
            anchor = "start" if step == 0 else "end" if step == self.steps - 1 else "middle"
            label = "step 1" if step == 0 else str(step + 1)
            yield f'<text x="{self.x(step):.1f}" y="{bottom + 16}" text-anchor="{anchor}">{label}</text>'


def _points(values: Sequence[Any]) -> list[Points]:
    """The stretches of a curve between what is not finite."""
    stretches: list[Points] = [[]]
    for step, value in enumerate(values):
        known = finite(value)
        if known is None:
            stretches.append([])
        else:
            stretches[-1].append((step, known))
    return [stretch for stretch in stretches if stretch]


def _path(axes: _Axes, values: Sequence[Any], kind: str) -> Iterator[str]:
    for stretch in _points(values):
        if len(stretch) == 1:
            step, value = stretch[0]
            yield f'<circle class="{kind} dot" cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}" r="2.5"/>'
            continue
        drawn = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in stretch)
        yield f'<polyline class="{kind}" points="{drawn}"/>'


def _svg(said: str, width: int, height: int, parts: Iterator[str] | list[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(said)}" width="{width}" viewBox="0 0 {width} {height}">'
        f"<title>{escape(said)}</title>{''.join(parts)}</svg>"
    )


def curves(full: list[list[Any]], half: list[list[Any]], said: str, width: int = 720, height: int = 200) -> str:
    """FP32's seeds as a band, its first as a dashed line, AMP's first run as a solid one, a cross at each step where
    AMP's value is not finite. Empty where there is nothing to draw."""
    every = [known for run in (*full, *half) for value in run if (known := finite(value)) is not None]
    if not every:
        return ""
    axes = _Axes(max(len(run) for run in (*full, *half)), every, width, height)
    parts = [*axes.drawn(), *_band(axes, full)]
    for runs, kind in ((full, "full"), (half, "half")):
        if runs:
            parts += _path(axes, runs[0], kind)
    for step, value in enumerate(half[0] if half else ()):
        if isinstance(value, str):
            parts.append(_cross(axes.x(step), _TOP + 6))
    return _svg(said, width, height, parts)


def _band(axes: _Axes, runs: list[list[Any]]) -> Iterator[str]:
    if len(runs) < 2:
        return
    upper, lower = [], []
    for step in range(min(map(len, runs))):
        known = [value for run in runs if (value := finite(run[step])) is not None]
        if known:
            upper.append(f"{axes.x(step):.1f},{axes.y(max(known)):.1f}")
            lower.append(f"{axes.x(step):.1f},{axes.y(min(known)):.1f}")
    if upper:
        yield f'<polygon class="band" points="{" ".join((*upper, *reversed(lower)))}"/>'


def _cross(x: float, y: float) -> str:
    return f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'


def scale_course(scales: list[Any], skipped: list[int], width: int = 720, height: int = 110) -> str:
    """The loss scale by step, a cross where the step was skipped."""
    known = [(step, value) for step, one in enumerate(scales) if (value := finite(one)) is not None and value > 0]
    if not known:
        return ""
    powers = [math.log2(value) for _, value in known]
    axes = _Axes(len(scales), [2.0 ** math.floor(min(powers)), 2.0 ** math.ceil(max(powers) + 0.01)], width, height)
    axes.log = True
    drawn = []
    for index, (step, value) in enumerate(known):
        if index:
            drawn.append(f"{axes.x(step):.1f},{axes.y(known[index - 1][1]):.1f}")
        drawn.append(f"{axes.x(step):.1f},{axes.y(value):.1f}")
    at = dict(known)
    crosses = [_cross(axes.x(step), axes.y(at[step])) for step in skipped if step in at]
    parts = [*axes.drawn(), f'<polyline class="half" points="{" ".join(drawn)}"/>', *crosses]
    return _svg("loss scale by step; a cross marks a skipped step", width, height, parts)


def cost_bars(rows: list[tuple[str, float, float, str, str]], width: int = 720) -> str:
    """FP32 and AMP beside each other, one pair for each cost; each pair has its own measure."""
    parts, top = [], 4
    for name, full, half, shown_full, shown_half in rows:
        most = max(full, half) or 1.0
        parts.append(f'<text class="name" x="0" y="{top + 20}">{escape(name)}</text>')
        for value, shown, kind, label in (
            (full, shown_full, "bar-full", "FP32"),
            (half, shown_half, "bar-half", "AMP"),
        ):
            long = (width - 270) * value / most
            parts.append(f'<text x="150" y="{top + 12}" text-anchor="end">{label}</text>')
            parts.append(f'<rect class="{kind}" x="158" y="{top}" width="{max(1.0, long):.1f}" height="14"/>')
            parts.append(f'<text x="{164 + long:.1f}" y="{top + 12}">{escape(shown)}</text>')
            top += 18
        top += 10
    return _svg("costs of FP32 and AMP", width, top, parts)


def legend(seeds: int) -> str:
    """What the lines show, in words."""
    swatch = '<svg width="30" height="12">{}</svg>'
    shown = [
        ('<line class="full" x1="0" x2="30" y1="6" y2="6"/>', "FP32 (dashed)"),
        ('<line class="half" x1="0" x2="30" y1="6" y2="6"/>', "AMP (solid)"),
        (_cross(15, 6), "not finite, or skipped"),
    ]
    if seeds > 1:
        shown.insert(1, ('<rect class="band" width="30" height="12"/>', f"FP32's spread over {seeds} seeds"))
    return '<p class="legend">' + "".join(f"<span>{swatch.format(one)}{text}</span>" for one, text in shown) + "</p>"

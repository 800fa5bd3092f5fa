"""The report's sentences and numbers, which terminal, Markdown and page share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from amplint.report.numbers import amount, number
from amplint.report.trace.scale import WINDOWS

Report = dict[str, Any]
SIGNS = {"same": "✓", "not the same": "✗", "not enough steps": "?"}


def finite(value: Any) -> float | None:
    """A value of a series as a number; None where it is not finite (JSON has it as a word) or not there."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def title(report: Report) -> str:
    """train.py in FP32 and float16: same, over 50 steps"""
    target, verdict = report["target"], report["verdict"]
    return f"{target['script']} in FP32 and {target['dtype']}: {verdict['word']}, over {verdict['steps']} steps"


def how(report: Report) -> str:
    """What ran, where."""
    target = report["target"]
    against = f"against {target['against']}" if target["against"] else "against what amplint fix makes of it"
    launched = f" under {target['launcher']}" if target["launcher"] else ""
    seeds = "1 seed" if target["seeds"] == 1 else f"{target['seeds']} seeds"
    return f"{against}; {seeds} of FP32{launched}; {target['device']}, torch {target['torch']}"


def costs(report: Report) -> Iterator[tuple[str, float, float, str, str]]:
    """What was measured of both: name, FP32, AMP, the two as people write them."""
    for key, name, shown in (
        ("speed", "time a step", _seconds),
        ("memory", "peak memory", amount),
        ("energy", "energy a step", _joules),
    ):
        both = report[key]
        if both:
            yield name, both["fp32"], both["amp"], shown(both["fp32"]), shown(both["amp"])


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _joules(value: float) -> str:
    return f"{value:.3g} J"


def times(full: float, half: float) -> str:
    """How AMP's cost compares: 1.92 times less, 1.1 times more."""
    if not full or not half:
        return ""
    return f"{full / half:.2f} times less" if half <= full else f"{half / full:.2f} times more"


def batches(report: Report) -> Iterator[tuple[str, str, int, str]]:
    """The batch sweep: FP32 or AMP, "that fits" or, where no larger one was too large, "tried", batch, samples/s."""
    for kind, name in (("fp32", "FP32"), ("amp", "AMP")):
        best = (report["sweep"] or {}).get(kind)
        if best:
            yield name, "that fits" if best["full"] else "tried", best["batch"], number(best["samples_per_s"])


def faults(report: Report) -> Iterator[dict[str, Any]]:
    """The faults that are no reason of the verdict: those have been told."""
    for fault in report["faults"]:
        if not any(reason.startswith(f"{fault['code']}: {fault['what']}") for reason in report["verdict"]["reasons"]):
            yield fault


def scale_said(report: Report) -> str:
    """The loss scale's course in a line; empty without a scaler."""
    scales = [value for value in map(finite, report["scale"]) if value is not None]
    if not scales:
        return ""
    course = [scales[0]]
    for value in scales:
        if value != course[-1]:
            course.append(value)
    shown = " → ".join(map(number, course if len(course) <= 6 else [*course[:3], *course[-3:]]))
    skipped = report["skipped"]
    steps = "1 step skipped" if len(skipped) == 1 else f"{len(skipped)} steps skipped" if skipped else "no step skipped"
    at = (
        f" (step {', '.join(str(step + 1) for step in skipped[:8])}{', …' if len(skipped) > 8 else ''})"
        if skipped
        else ""
    )
    return f"loss scale: {shown}; {steps}{at}"


def operation(line: dict[str, Any]) -> str:
    """convolution_backward in the backward."""
    name = str(line["op"]).removeprefix("aten.").removesuffix(".default")
    return f"{name}, {line['phase']}"


def operations(report: Report) -> str:
    """How many operations the counters are of, and how many of them lost values."""
    lines, dtype = report["lines"], report["target"]["dtype"]
    return f"operations in {dtype}, by line: {len(lines)}; {sum(map(troubled, lines))} lost values to inf, NaN or 0"


def troubled(line: dict[str, Any]) -> bool:
    """Whether a line's counters show a loss: what became inf or NaN, or was flushed to zero."""
    return bool(line["inf"] or line["nan"] or line["flushed"])


def headroom(line: dict[str, Any], dtype: str) -> str:
    """How often the largest magnitude may double before the dtype ends, in bits."""
    largest = finite(line["absmax"])
    if not largest:
        return ""
    return f"{math.log2(WINDOWS[dtype].largest / largest):+.1f} bits"


def where(line: dict[str, Any]) -> str:
    """path:line, or that it is not of the user's."""
    return f"{line['path']}:{line['line']}" if line.get("path") else "no line of yours"


def counted(count: int, of: int) -> str:
    """A count with its share: 12 (0.3 %)."""
    if not count or not of:
        return str(count)
    percent = 100 * count / of
    return f"{count} ({'< 0.01' if percent < 0.01 else f'{percent:.2g}' if percent < 99.5 else '100'} %)"


def half_layers(report: Report) -> str:
    """Which share of the layers' calls gave a half result."""
    dtype = report["target"]["dtype"]
    calls = sum(layer["calls"] for layer in report["layers"])
    half = sum(layer["dtypes"].get(dtype, 0) for layer in report["layers"])
    return f"{half} of {calls} calls of layers gave {dtype}" if calls else ""


def outcomes(report: Report) -> str:
    """2 marks confirmed, 1 refuted, 3 not exercised."""
    words = ("confirmed", "refuted", "not exercised")
    counts = {word: sum(mark["outcome"] == word for mark in report["marks"]) for word in words}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)

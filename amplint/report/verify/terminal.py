"""The verdict for the terminal: first the word, then why, then what was measured, worst lines first."""

from __future__ import annotations

from collections.abc import Iterator

from amplint.report.numbers import number
from amplint.report.verify.words import (
    SIGNS,
    Report,
    batches,
    costs,
    counted,
    faults,
    finite,
    half_layers,
    headroom,
    how,
    operation,
    operations,
    outcomes,
    scale_said,
    times,
    title,
    troubled,
    where,
)

_BARS = "▁▂▃▄▅▆▇█"
_LINES = 10


def summary(report: Report) -> str:
    """The report in lines; ends in a newline."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    verdict = report["verdict"]
    yield f"{SIGNS[verdict['word']]} {title(report)}"
    yield from (f"  {reason}" for reason in verdict["reasons"])
    yield f"  {how(report)}"
    yield from (f"fault: {fault['code']} {fault['what']}{_at(fault)}" for fault in faults(report))
    yield ""
    yield from _series(report)
    for name, full, half, shown_full, shown_half in costs(report):
        yield f"{name:14} FP32 {shown_full:>9}   AMP {shown_half:>9}   {times(full, half)}"
    if scale_said(report):
        yield scale_said(report)
    if half_layers(report):
        yield half_layers(report)
    yield from _table(report)
    if report["marks"]:
        yield f"marks and findings against the counters: {outcomes(report)}"
        told = (f"  {one['outcome']:13} {one['code']}  {one['place']}  {one['evidence']}" for one in report["marks"])
        yield from dict.fromkeys(told)  # several operations on one line
    for name, which, batch, speed in batches(report):
        yield f"largest batch {which}, {name}: {batch}, {speed} samples a second"
    for advice in report["advice"]:
        yield f"advice: {'' if advice['code'] == 'note' else advice['code'] + ' '}{advice['text']}"
    yield from (f"written through a link to your own file: {path}" for path in report["links_written"])
    yield from (f"note: {note}" for note in report["notes"])
    yield from (f"not measured: {what}" for what in report["not_measured"])


def _at(fault: dict[str, object]) -> str:
    times_seen = f", {fault['count']} times" if fault["count"] != 1 else ""
    return f" ({fault['place']}{times_seen})" if fault["place"] else times_seen


def _series(report: Report) -> Iterator[str]:
    for series in report["series"]:
        yield f"loss at {series['site']}"
        for name, runs in (("FP32", series["fp32"]), ("AMP", series["amp"])):
            yield from (f"  {name:5} {_course(values)}" for values in runs[:1])


def _course(values: list[object]) -> str:
    """A curve in a line: first and last value, and up to 40 levels between."""
    known = [value for value in map(finite, values) if value is not None]
    if not known:
        return "not a number at any step" if values else "nothing"
    low, high = min(known), max(known)
    count = min(40, len(values))
    picked = [finite(values[index * len(values) // count]) for index in range(count)]
    spread = (high - low) or 1.0
    levels = "".join("×" if one is None else _BARS[min(7, int(8 * (one - low) / spread))] for one in picked)
    return f"{known[0]:<9.4g} {levels} {known[-1]:.4g}"


def _table(report: Report) -> Iterator[str]:
    dtype, lines = report["target"]["dtype"], report["lines"]
    if not lines:
        return
    bad = [line for line in lines if troubled(line)]
    yield operations(report)
    shown = (bad or lines)[:_LINES]
    yield f"  {'inf':>14} {'nan':>8} {'flushed':>16} {'largest':>10} {'headroom':>10}  operation"
    for line in shown:
        largest = finite(line["absmax"])
        yield (
            f"  {counted(line['inf'], line['elements']):>14} {line['nan']:>8} "
            f"{counted(line['flushed'], line['elements']):>16} {number(largest) if largest is not None else 'inf':>10} "
            f"{headroom(line, dtype):>10}  {operation(line)}, {where(line)}"
        )
    if len(bad or lines) > _LINES:
        yield f"  … {len(bad or lines) - _LINES} more in the JSON and the page"

"""The summary for the terminal: worst first, a range bar for each mark, then gradients, casts, and what is unknown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amplint.report.numbers import amount, many, number, share
from amplint.report.trace.scale import WINDOWS, Report, bar, bits, silence, where

_AXIS = "2^-30" + " " * 3 + "2^-14" + " " * 10 + "2^16"


def summary(report: Report) -> str:
    """The report in lines; ends in a newline."""
    return "\n".join(_lines(report)) + "\n"


def order(marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Worst first: errors, warnings, notes; in each, the least headroom."""
    ranks = {"error": 0, "warning": 1, "note": 2}
    return sorted(marks, key=lambda one: (ranks[one["severity"]], _least(one["headroom_bits"]), where(one["place"])))


def _least(headroom: float | None) -> float:
    return 0.0 if headroom is None else headroom


def _lines(report: Report) -> Iterator[str]:
    target, nodes = report["target"], {node["name"]: node for node in report["nodes"]}
    window = WINDOWS[target["dtype"]]
    half = [node for node in report["nodes"] if node["dtype"] == target["dtype"]]
    how = "autocast" if target["precision"] == "amp" else "the model itself half"
    yield (
        f"{target['model']}: {amount(target['parameters'], '')} parameters, {many(len(nodes), 'operation')} "
        f"({target['frontend']}), {how} in {target['dtype']}, {target['device']}; batch {', '.join(target['batch'])}"
    )
    safe = sum(node["safe"] for node in half)
    run = "runs" if len(half) == 1 else "run"
    yield f"{many(len(half), 'operation')} {run} in {target['dtype']}; {safe} of them proved not to overflow"
    yield from (f"note: {note}" for note in target["notes"])
    marks = order(report["marks"])
    yield ""
    if marks:
        yield f"{'':8} {'':11} {'headroom':>11}  {_AXIS}"
    else:
        yield "no marks" + (f"; {many(report['hidden'], 'note')}: --select AMP4 shows" if report.get("hidden") else "")
    for mark in marks:
        node = nodes.get(mark["node"])
        seen = (node or {}).get("gradient" if mark["code"] == "AMP454" else "measured")
        largest = seen["absmax"] if seen else (node or {}).get("amax")
        picture = bar(seen["tiny"] if seen else None, largest, window) if node else ""
        times = f" ({mark['count']} times)" if mark["count"] > 1 and "modules; worst" not in mark["message"] else ""
        headroom = bits(mark["headroom_bits"])
        yield f"{mark['code']:8} {mark['verdict']:11} {headroom:>11}  {picture}  {where(mark['place'])}"
        yield f"{'':20} {mark['message']}{times}"
        if mark["cause"]:
            yield f"{'':20} because: {mark['cause']}"
        yield f"{'':20} do: {mark['remedy']}"
    yield ""
    if marks:
        dtype = target["dtype"]
        yield f"bars: # values measured, 0 becomes 0, ! becomes inf; {dtype}: . subnormal, - normal, | its end"
    yield from _gradients(report)
    plan = report["plan"]
    if target["precision"] == "amp":
        kinds = (
            f"{plan['lower']} in {target['dtype']}, {plan['fp32']} in float32, {plan['promote']} in their widest dtype"
        )
        casts = f"{many(plan['casts'], 'cast')}, {amount(plan['bytes'])}"
        yield f"of all operations autocast runs {kinds}, {plan['other']} as they come: {casts}"
    if report["unknown"]:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(report["unknown"].items()))
        yield f"unknown to amplint, so nothing is said of what they give: {names}"


def _gradients(report: Report) -> Iterator[str]:
    gradients = report["gradients"]
    if gradients is None:
        return
    dtype, scale = report["target"]["dtype"], gradients["scale"]
    if not gradients["signal"]:
        yield f"gradients: too little to go by: {silence(gradients)}"
        return
    yield (
        f"gradients in {dtype}: without a loss scale {share(gradients['flushed_at_1'])} become 0 and "
        f"{share(gradients['subnormal_at_1'])} are subnormal; scaled by {number(scale)}, "
        f"{share(gradients['flushed_at_scale'])} become 0"
    )
    if gradients["window"]:
        low, high = gradients["window"]
        inside = "inside" if low <= scale <= high else "OUTSIDE"
        whose = "the scaler's" if gradients["own_scale"] else "a GradScaler's first"
        yield f"useful loss scales: {_power(low)} to {_power(high)}; {number(scale)}, {whose}, is {inside}"
    else:
        yield "useful loss scales: none: what saves the small gradients makes the large ones inf"
    swamped = gradients["swamped"]
    if swamped:
        yield (
            f"first updates lost to rounding ({swamped['optimizer']}, lr {swamped['lr']:g}): "
            f"{share(swamped['share_half'])} if weights were {dtype}, {share(swamped['share_float32'])} in float32"
        )


def _power(value: float) -> str:
    return f"2^{round(value).bit_length() - 1}" if value >= 1 else number(value)

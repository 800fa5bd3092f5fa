"""The report as one self-contained page: no script, no network; light and dark; what colour says, a word or a shape
says, too."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from amplint.report.html import document
from amplint.report.numbers import number
from amplint.report.verify.pictures import cost_bars, curves, legend, scale_course
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
    where,
)

_KINDS = {"same": "same", "not the same": "not", "not enough steps": "few"}
_SEEN = {"confirmed": "▲ confirmed", "refuted": "✓ refuted", "not exercised": "– not exercised"}


def page(report: Report, sources: dict[str, str]) -> str:
    """The page. `sources`: the texts of the files that lines are in, by path."""
    parts = (
        _verdict(report),
        _losses(report),
        _costs(report),
        _scale(report),
        _lines(report, sources),
        _marks(report),
        _layers(report),
        _rest(report),
    )
    body = "\n".join(line for part in parts for line in part)
    return document(f"amplint verify: {report['target']['script']}", body, Path(__file__).with_name("page.css"))


def _verdict(report: Report) -> Iterator[str]:
    verdict, target = report["verdict"], report["target"]
    word = verdict["word"]
    yield f'<section class="verdict {_KINDS[word]}">'
    yield f"<h1><span>{SIGNS[word]} {escape(word.capitalize())}</span> over {verdict['steps']} steps</h1>"
    command = " ".join((target["script"], *target["arguments"]))
    yield f"<p><code>{escape(command)}</code> in FP32 and in {escape(target['dtype'])}</p>"
    said = [*verdict["reasons"], *(_fault(fault) for fault in faults(report))]
    yield f"<ul>{''.join(f'<li>{escape(one)}' for one in said)}</ul>" if said else ""
    yield f'<p class="soft">{escape(how(report))}</p></section>'


def _fault(fault: dict[str, Any]) -> str:
    at = f" at {fault['place']}" if fault["place"] else ""
    return f"{fault['code']}: {fault['what']}{at}" + (f", {fault['count']} times" if fault["count"] != 1 else "")


def _losses(report: Report) -> Iterator[str]:
    drawn = [
        (f"Loss at {series['site']}", curves(series["fp32"], series["amp"], f"loss at {series['site']} by step"))
        for series in report["series"]
    ]
    norms = report["norms"]
    if norms["fp32"] and norms["amp"]:
        drawn.append(("Gradient norm, unscaled", curves([norms["fp32"]], [norms["amp"]], "gradient norm by step")))
    drawn = [(name, picture) for name, picture in drawn if picture]
    if drawn:
        yield "<h2>Loss and gradients, step by step</h2>"
        yield legend(max((len(series["fp32"]) for series in report["series"]), default=1))
    for name, picture in drawn:
        yield f"<p>{escape(name)}</p>{picture}"
    if report["verdict"]["band"]["why"]:
        yield f'<p class="soft">Allowed: {escape(report["verdict"]["band"]["why"])}.</p>'


def _costs(report: Report) -> Iterator[str]:
    rows = list(costs(report))
    if rows or report["sweep"] or report["not_measured"] or report["advice"]:
        yield f"<h2>Costs on {escape(report['target']['device'])}</h2>"
    if rows:
        yield cost_bars(rows)
        yield f"<p>{'; '.join(f'{name}: {times(full, half)}' for name, full, half, _, _ in rows)}.</p>"
    if report["sweep"]:
        yield '<table class="tight"><tr><th>largest batch<th class="end">batch<th class="end">samples/s'
        for name, which, batch, speed in batches(report):
            yield f'<tr><td>{which}, {name}<td class="end">{batch}<td class="end">{speed}'
        yield "</table>"
    yield from (f"<p>{escape(one['code'])}: {escape(one['text'])}</p>" for one in report["advice"])
    yield from (f'<p class="soft">Not measured: {escape(what)}</p>' for what in report["not_measured"])


def _scale(report: Report) -> Iterator[str]:
    said = scale_said(report)
    if said:
        yield f"<h2>Loss scale</h2>{scale_course(report['scale'], report['skipped'])}"
        yield f"<p>{escape(said.capitalize())}.</p>"


def _lines(report: Report, sources: dict[str, str]) -> Iterator[str]:
    dtype, lines = report["target"]["dtype"], report["lines"]
    if not lines:
        return
    yield f"<h2>What left {escape(dtype)}'s range, by source line</h2>"
    said = operations(report)
    yield f"<p>{escape(said[0].upper() + said[1:])}.</p>"
    heads = (
        "line",
        "operation",
        "calls",
        "inf",
        "NaN",
        "flushed to 0",
        "subnormal",
        "largest",
        "headroom",
        "counted by",
    )
    plain = ("line", "operation", "counted by")
    columns = "".join(f"<th{'' if head in plain else ' class=end'}>{head}" for head in heads)
    yield f'<div class="scroll"><table><tr>{columns}'
    yield from (_line(line, dtype, sources) for line in lines)
    yield "</table></div>"


def _line(line: dict[str, Any], dtype: str, sources: dict[str, str]) -> str:
    text = sources.get(line.get("path") or "", "").splitlines()
    source = text[line["line"] - 1].strip() if line.get("line") and line["line"] <= len(text) else ""
    largest = finite(line["absmax"])
    cells = [
        f'<td class="code" title="{escape(source)}">{"▲ " if line["inf"] or line["nan"] else ""}{escape(where(line))}',
        f'<td class="code">{escape(operation(line))}',
        f'<td class="end">{line["calls"]}',
    ]
    for key in ("inf", "nan", "flushed", "subnormal"):
        lost = " lost" if line[key] and key in ("inf", "nan") else ""
        cells.append(f'<td class="end{lost}">{counted(line[key], line["elements"])}')
    cells.append(f'<td class="end">{number(largest) if largest is not None else "inf"}')
    cells.append(f'<td class="end">{headroom(line, dtype)}<td>{escape(line["counted_by"])}')
    return f"<tr>{''.join(cells)}"


def _marks(report: Report) -> Iterator[str]:
    if not report["marks"]:
        return
    yield f"<h2>Marks and findings against the counters</h2><p>{escape(outcomes(report).capitalize())}.</p>"
    yield '<div class="scroll"><table><tr><th>outcome<th>code<th>place<th>what was predicted<th>what the run shows'
    for mark in report["marks"]:
        kind = mark["outcome"] if mark["outcome"] != "not exercised" else "unseen"
        yield (
            f'<tr><td class="outcome {kind}">{_SEEN[mark["outcome"]]}<td>{escape(mark["code"])}'
            f'<td class="code">{escape(mark["place"])}<td class="wrap">{escape(mark["message"])}'
            f'<td class="wrap">{escape(mark["evidence"])}'
        )
    yield "</table></div>"


def _layers(report: Report) -> Iterator[str]:
    if not report["layers"]:
        return
    dtype = report["target"]["dtype"]
    yield f"<details><summary><b>Layers</b> {escape(half_layers(report))}</summary>"
    heads = f'<th>layer<th class="end">calls<th class="end">in {escape(dtype)}<th>dtypes of results'
    yield f'<table class="tight"><tr>{heads}'
    for layer in report["layers"]:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(layer["dtypes"].items()))
        half = layer["dtypes"].get(dtype, 0)
        yield f'<tr><td class="code">{escape(layer["class"])}<td class="end">{layer["calls"]}<td class="end">{half}'
        yield f"<td>{escape(kinds)}"
    yield "</table></details>"


def _rest(report: Report) -> Iterator[str]:
    yield from (
        f"<p>Written through a link to your own file: <code>{escape(path)}</code></p>"
        for path in report["links_written"]
    )
    yield from (f"<p>Note: {escape(note)}.</p>" for note in report["notes"])

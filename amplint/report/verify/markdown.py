"""The report for a pull request: verdict and figures on top, the rest folded."""

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
    where,
)

_ROWS = 30


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown; ends in a newline."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    verdict = report["verdict"]
    yield f"### {SIGNS[verdict['word']]} {_text(title(report))}"
    yield ""
    yield from (f"- {_text(reason)}" for reason in verdict["reasons"])
    yield from (
        f"- **{fault['code']}** {_text(fault['what'])}" + (f" at `{_code(fault['place'])}`" if fault["place"] else "")
        for fault in faults(report)
    )
    yield f"- {_text(how(report))}"
    rows = list(costs(report))
    if rows:
        yield from ("", "| | FP32 | AMP | |", "| --- | ---: | ---: | --- |")
        yield from (f"| {name} | {full} | {half} | {times(a, b)} |" for name, a, b, full, half in rows)
    if report["sweep"]:
        yield from ("", "| largest batch | batch | samples a second |", "| --- | ---: | ---: |")
        for name, which, batch, speed in batches(report):
            yield f"| {which}, {name} | {batch} | {speed} |"
    yield ""
    yield from (f"- {_text(said)}" for said in (scale_said(report), half_layers(report)) if said)
    yield from (f"- {advice['code']}: {_text(advice['text'])}" for advice in report["advice"])
    yield from (f"- written through a link to your own file: `{_code(path)}`" for path in report["links_written"])
    yield from (f"- {_text(note)}" for note in report["notes"])
    yield from (f"- not measured: {_text(what)}" for what in report["not_measured"])
    yield from _table(report)
    yield from _marks(report)


def _table(report: Report) -> Iterator[str]:
    dtype, lines = report["target"]["dtype"], report["lines"]
    if not lines:
        return
    yield from ("", "<details>", f"<summary>{operations(report)}</summary>", "")
    yield "| line | operation | inf | NaN | flushed to 0 | largest | headroom |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for line in lines[:_ROWS]:
        largest = finite(line["absmax"])
        yield (
            f"| `{_code(where(line))}` | {operation(line)} | {counted(line['inf'], line['elements'])} | "
            f"{line['nan']} | {counted(line['flushed'], line['elements'])} | "
            f"{number(largest) if largest is not None else 'inf'} | {headroom(line, dtype)} |"
        )
    if len(lines) > _ROWS:
        yield f"| … {len(lines) - _ROWS} more | | | | | | |"
    yield from ("", "</details>")


def _marks(report: Report) -> Iterator[str]:
    if not report["marks"]:
        return
    yield from ("", "<details>", f"<summary>Marks and findings: {outcomes(report)}</summary>", "")
    yield "| | code | place | evidence |"
    yield "| --- | --- | --- | --- |"
    told = (
        f"| {mark['outcome']} | {mark['code']} | `{_code(mark['place'])}` | {_text(mark['evidence'])} |"
        for mark in report["marks"]
    )
    yield from dict.fromkeys(told)  # several operations on one line
    yield from ("", "</details>")


def _text(said: object) -> str:
    """Words as they are: nothing in them is Markdown, HTML or a cell's end, and nobody is called by @."""
    text = " ".join(str(said).split())
    for sign in "\\`*_[]<>|#~@":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>@" else {"<": "&lt;", ">": "&gt;", "@": "&#64;"}[sign])
    return text


def _code(said: object) -> str:
    """Inside backticks, in a cell of a table."""
    return " ".join(str(said).split()).replace("`", "'").replace("|", "\\|")

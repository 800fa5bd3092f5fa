"""The report as one self-contained page: no script, no network; light and dark; what colour says, a word or a shape
says, too."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from amplint.report.html import document
from amplint.report.numbers import amount, many, number, share
from amplint.report.trace.pictures import histogram, legend, range_bar
from amplint.report.trace.scale import VERDICTS, WINDOWS, Report, Window, bits, least, silence, where
from amplint.report.trace.terminal import order

Node = dict[str, Any]
Tree = dict[str, Any]


def page(report: Report, sources: dict[str, str]) -> str:
    """The page. `sources`: the texts of the files that marks are in, by path."""
    target = report["target"]
    window = WINDOWS[target["dtype"]]
    body = "\n".join(
        (
            *_head(report),
            *_cards(report),
            *_marks(report, sources, window),
            *_gradients(report, window),
            *_model(report, window),
            *_unknown(report),
        )
    )
    return document(f"amplint trace: {target['model']}", body)


def _head(report: Report) -> Iterator[str]:
    target = report["target"]
    how = "under autocast" if target["precision"] == "amp" else "with the model itself half"
    yield f"<h1>{escape(target['model'])} in {target['dtype']}</h1>"
    batch = escape(", ".join(target["batch"]))
    yield (
        f'<p class="soft">amplint trace {escape(target["what"])}: {how}, {escape(target["device"])}; '
        f"captured by {escape(target['frontend'])} in {target['mode']} mode; batch {batch}.</p>"
    )
    yield from (f"<p>Note: {escape(note)}.</p>" for note in target["notes"])


def _cards(report: Report) -> Iterator[str]:
    dtype, plan = report["target"]["dtype"], report["plan"]
    half = [node for node in report["nodes"] if node["dtype"] == dtype]
    safe = sum(node["safe"] for node in half)
    cards = [
        (str(len(report["marks"])), "mark" + ("" if len(report["marks"]) == 1 else "s")),
        (f"{len(half)} of {len(report['nodes'])}", f"operations in {dtype}"),
        (f"{safe} of {len(half)}", "proved not to overflow"),
        (amount(report["target"]["parameters"], ""), "parameters"),
        (str(plan["casts"]), f"casts per forward, {amount(plan['bytes'])}"),
    ]
    yield '<div class="cards">'
    yield from (f'<div class="card"><b>{escape(value)}</b>{escape(label)}</div>' for value, label in cards)
    yield "</div>"


def _marks(report: Report, sources: dict[str, str], window: Window) -> Iterator[str]:
    yield "<h2>Marks, worst first</h2>"
    if not report["marks"]:
        yield f"<p>None{_hidden(report)}.</p>"
    nodes = {node["name"]: node for node in report["nodes"]}
    for mark in order(report["marks"]):
        node = nodes.get(mark["node"], {})
        times = f", {mark['count']} times: {', '.join(mark['modules'][:6])}" if mark["count"] > 1 else ""
        yield f'<section class="mark {mark["severity"]}">'
        yield (
            f'<h3><span class="tag {mark["severity"]}">{mark["severity"]} {mark["code"]}</span> '
            f"{escape(mark['message'])}</h3>"
        )
        headroom, verdict = bits(mark["headroom_bits"]) or "unknown", mark["verdict"]
        known = f"{verdict}: {VERDICTS[verdict]}" if verdict in VERDICTS else verdict
        yield f'<p class="soft">{escape(known)}; headroom {headroom}{escape(times)}</p>'
        backward = {"measured": node.get("gradient")} if mark["code"] == "AMP454" else node
        yield range_bar(backward, window, 520, axis=True)
        if mark["cause"]:
            yield f"<p>Because: {escape(mark['cause'])}.</p>"
        yield f"<p>Do: {escape(mark['remedy'])}.</p>"
        yield f"<p>{_link(mark['place'])}</p>"
        yield _excerpt(mark["place"], sources)
        if mark.get("fix"):
            yield f'<p>As <span class="code">amplint fix --from-trace</span> writes it:</p>{_diff(mark["fix"])}'
        yield "</section>"


def _hidden(report: Report) -> str:
    """How many notes are not shown."""
    count = report.get("hidden", 0)
    return f"; {many(count, 'note')} not shown: --select AMP4 shows them" if count else ""


def _diff(rows: list[tuple[str, str]]) -> str:
    lines = (
        f'<span class="{"add" if sign == "+" else "cut"}">{escape(sign + " " + line)}</span>' for sign, line in rows
    )
    return f'<pre class="code">{chr(10).join(lines)}</pre>'


def _link(place: dict[str, Any] | None, shown: str = "") -> str:
    if not place:
        return '<span class="soft">no line of yours</span>'
    name = escape(where(place))
    return f'<a class="code" href="file://{escape(place["path"])}" title="{name}">{escape(shown) or name}</a>'


def _excerpt(place: dict[str, Any] | None, sources: dict[str, str]) -> str:
    """The marked line between its neighbours, the expression underlined."""
    if not place or place["path"] not in sources:
        return ""
    lines, row = sources[place["path"]].splitlines(), place["row"]
    around = list(range(max(1, row - 2), min(len(lines), row + 2) + 1))
    while around and around[-1] > row and not lines[around[-1] - 1].strip():
        around.pop()
    while around and around[0] < row and not lines[around[0] - 1].strip():
        around.pop(0)
    shown = []
    for at in around:
        line = lines[at - 1]
        text = escape(line)
        if at == row and place.get("column"):
            start = place["column"] - 1
            end = place["end_column"] - 1 if place["end_row"] == row else len(line)
            text = f"{escape(line[:start])}<mark>{escape(line[start:end])}</mark>{escape(line[end:])}"
        shown.append(f"{'&gt;' if at == row else ' '} {at:4} {text}")
    return f'<pre class="code">{chr(10).join(shown)}</pre>'


def _gradients(report: Report, window: Window) -> Iterator[str]:
    gradients = report["gradients"]
    if gradients is None:
        return
    yield "<h2>Gradients</h2>"
    loss = escape(report["target"]["loss"])
    yield f'<p class="soft">Of the loss ({loss}) at the operations that run in {window.name}.</p>'
    if not gradients["signal"]:
        yield f"<p>Too little to go by: {escape(silence(gradients))}.</p>"
        return
    scale = gradients["scale"]
    flushed, subnormal = share(gradients["flushed_at_1"]), share(gradients["subnormal_at_1"])
    yield f"<p>Without a loss scale, {flushed} become 0 and {subnormal} are subnormal:</p>"
    yield histogram(gradients["hist"], window, 1)
    flushed, infinite = share(gradients["flushed_at_scale"]), share(gradients["overflow_at_scale"])
    yield f"<p>Scaled by {number(scale)}, {flushed} become 0 and {infinite} inf:</p>"
    yield histogram(gradients["hist"], window, scale)
    if gradients["window"]:
        low, high = gradients["window"]
        inside = "inside" if low <= scale <= high else "outside of it"
        yield f"<p>Useful loss scales: {number(low)} to {number(high)}; {number(scale)} is {inside}.</p>"
    else:
        yield "<p>There is no useful loss scale: what saves the small gradients makes the large ones inf.</p>"
    swamped = gradients["swamped"]
    if swamped:
        shares = (share(swamped["share_half"]), share(swamped["share_float32"]))
        rate = f"{escape(swamped['optimizer'])}, lr {swamped['lr']:g}"
        yield f"<p>First updates lost to rounding ({rate}): {shares[0]} if weights were {window.name}, "
        yield f"{shares[1]} in float32.</p>"


def _model(report: Report, window: Window) -> Iterator[str]:
    yield "<h2>The model, module by module</h2>"
    yield legend(window)
    root: Tree = {"name": "", "kind": report["target"]["model"], "nodes": [], "inner": {}}
    for node in report["nodes"]:
        _room(root, node)["nodes"].append(node)
    yield from _module(root, window, opened=True)


def _room(root: Tree, node: Node) -> Tree:
    """The module's place in the tree: made where it is not there yet."""
    tree = root
    for path, kind in node["module"]:
        if path:
            tree = tree["inner"].setdefault(path, {"name": path, "kind": kind, "nodes": [], "inner": {}})
    return tree


def _all(tree: Tree) -> Iterator[Node]:
    yield from tree["nodes"]
    for inner in tree["inner"].values():
        yield from _all(inner)


_COLUMNS = ("operation", "dtype", "shape", "range, measured and estimated", "largest", "line")


def _module(tree: Tree, window: Window, opened: bool = False) -> Iterator[str]:
    every = list(_all(tree))
    marked = sum(node["mark"] is not None for node in every)
    half = sum(node["dtype"] == window.name for node in every)
    said = f"{many(len(every), 'operation')}, {half} in {window.name}"
    room = least(every, window)
    said += f", least headroom {bits(room)}" if room is not None else ""
    said += f", {marked} marked ▲" if marked else ""
    yield f"<details{' class=root' if opened else ''}{' open' if opened or marked else ''}>"
    yield f"<summary><b>{escape(tree['name'] or 'model')}</b> {escape(tree['kind'])} "
    yield f'<span class="soft">{said}</span></summary>'
    if tree["nodes"]:
        yield f'<div class="scroll"><table><tr>{"".join(f"<th>{name}" for name in _COLUMNS)}'
        yield from (_row(node, window) for node in tree["nodes"])
        yield "</table></div>"
    for inner in tree["inner"].values():
        yield from _module(inner, window)
    yield "</details>"


def _row(node: Node, window: Window) -> str:
    measured, place = node["measured"], node["place"]
    largest = number(measured["absmax"]) if measured else ""
    line = f"{Path(place['path']).name}:{place['row']}" if place else ""
    picture = range_bar(node, window, 300) if "float" in node["dtype"] else ""
    return (
        f"<tr{' class=marked' if node['mark'] is not None else ''}>"
        f'<td class="code">{escape(_short(node["op"]))}'
        f'<td class="code">{node["dtype"]}<td class="code">{"×".join(map(str, node["shape"]))}<td>{picture}'
        f'<td class="number">{largest}<td class="code">{_link(place, line) if place else ""}'
    )


def _short(op: str) -> str:
    """aten.linear.default → linear."""
    return "getitem" if "getitem" in op else op.removeprefix("aten.").removesuffix(".default")


def _unknown(report: Report) -> Iterator[str]:
    if report["unknown"]:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(report["unknown"].items()))
        yield f"<h2>Unknown to amplint</h2><p>Nothing is said of what these give: <code>{escape(names)}</code></p>"

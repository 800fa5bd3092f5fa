"""How many models `amplint trace` captures, and how well: run it with timm and transformers installed.

    python benchmarks/capture.py timm transformers            # capture, lines, time beside torch.export alone
    python benchmarks/capture.py --dtypes transformers        # and each node's dtype against runs under the policy
    python benchmarks/capture.py --frontend compile timm      # one front end
    python benchmarks/capture.py transformers/bert            # one model

Each model runs in a forked process of its own, with a time limit. Columns: front end; seconds of capture and of
torch.export alone; calls in the graph; the share of them with a line, with columns; with --dtypes, how many nodes have
the dtype that a run of the graph under CUDA's policy gives, and how many that of an eager recording of the model.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import multiprocessing
import os
import statistics
import time
import traceback
import warnings
from collections import Counter
from typing import Any

import torch
import zoo

from amplint.graph.capture.captured import Captured, Precision, dtype_of, place_of
from amplint.graph.capture.ladder import capture
from amplint.graph.policy import cuda_policy
from amplint.graph.run import run

Row = dict[str, Any]


def measured(case: zoo.Case, frontend: str, dtypes: bool, alone: bool) -> Row:
    """Capture a model: what the table says of it."""
    model, args, kwargs = case
    start = time.perf_counter()
    captured = capture(model, args, kwargs, Precision(), frontend)
    row: Row = {"frontend": captured.frontend, "seconds": time.perf_counter() - start, "notes": captured.notes}
    places = [place_of(node) for node in captured.nodes()]
    row["nodes"], row["lines"] = len(places), sum(one is not None for one in places)
    row["columns"] = sum(one is not None and one.column > 0 for one in places)
    row["odd"] = sorted({str(node.target) for node in captured.nodes() if node.meta.get("val") is None})
    if dtypes:
        row["ran"] = _as_run(captured)
        row["eager"] = _as_recorded(captured, capture(model, args, kwargs, Precision(), "recorder"))
    if alone:
        start = time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where it prints the graph of what it does not take
                torch.export.export(model, args, kwargs, strict=False)
            row["alone"] = time.perf_counter() - start
        except Exception:  # what export does not take has no time
            row["alone"] = None
    return row


def _as_run(captured: Captured) -> tuple[int, int, list[str]]:
    """(nodes with the dtype that they have in a run, nodes, those that differ)."""
    wrong, count = [], 0

    def seen(node: Any, value: Any) -> Any:
        nonlocal count
        if isinstance(value, torch.Tensor):
            count += 1
            if value.dtype != dtype_of(node):
                wrong.append(f"{node.name}: {dtype_of(node)}, ran in {value.dtype}")
        return value

    with cuda_policy(), torch.no_grad():
        run(captured, seen, full=False)
    return count - len(wrong), count, wrong


def _as_recorded(captured: Captured, recorded: Captured) -> tuple[int, int, list[str]]:
    """(nodes with the dtype that the same call has in an eager recording, nodes that have one, those that differ).
    Calls are the same where the order of calls is."""
    ours, theirs = ([node for node in one.nodes() if dtype_of(node) is not None] for one in (captured, recorded))
    matcher = difflib.SequenceMatcher(None, *([str(n.target) for n in one] for one in (ours, theirs)), autojunk=False)
    pairs = [
        (ours[block.a + at], theirs[block.b + at])
        for block in matcher.get_matching_blocks()
        for at in range(block.size)
    ]
    wrong = [f"{a.name}: {dtype_of(a)}, recorded {dtype_of(b)}" for a, b in pairs if dtype_of(a) != dtype_of(b)]
    return len(pairs) - len(wrong), len(pairs), wrong


def _child(pipe: Any, kind: str, name: str, options: argparse.Namespace) -> None:
    try:
        case = getattr(zoo, kind)(name)
        pipe.send(measured(case, options.frontend, options.dtypes, options.frontend == "auto"))
    except BaseException as error:
        if options.verbose:
            traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})


def _limited(kind: str, name: str, options: argparse.Namespace) -> Row:
    """The row of a model, from a process of its own that has so many seconds."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, kind, name, options))
    process.start()
    theirs.close()
    try:
        return dict(ours.recv()) if ours.poll(options.limit) else {"error": f"time limit of {options.limit} s"}
    except EOFError:
        return {"error": "the process died"}
    finally:
        process.kill()
        process.join()


def _warm() -> None:
    """What only the first capture of a process costs."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    torch.export.export(net, (torch.ones(2, 2),), strict=False)
    capture(net, (torch.ones(2, 2),), {}, Precision())


def _print_row(name: str, row: Row) -> None:
    if "error" in row:
        print(f"{name:28} NOT CAPTURED: {row['error'][:160]}", flush=True)
    else:
        alone = f"{row['alone']:7.1f}" if row.get("alone") is not None else "      –"
        line = f"{name:28} {row['frontend']:9} {row['seconds']:8.1f} {alone} {row['nodes']:6}"
        line += f" {row['lines'] / row['nodes']:6.1%} {row['columns'] / row['nodes']:7.1%}"
        for key in ("ran", "eager"):
            if key in row:
                line += f"  {row[key][0]}/{row[key][1]}" + (f" ({row[key][2][0]})" if row[key][2] else "")
        print(line + ("; " + "; ".join(row["notes"]) if row["notes"] else "")[:200], flush=True)


def _print_sums(kind: str, rows: dict[str, Row]) -> None:
    good = [row for row in rows.values() if "error" not in row]
    if not good:
        return
    calls = sum(row["nodes"] for row in good)
    print(f"{kind}: {len(good)} of {len(rows)} captured, by {dict(Counter(row['frontend'] for row in good))}; ", end="")
    print(f"of {calls} calls {sum(row['lines'] for row in good) / calls:.2%} have a line, ", end="")
    print(f"the least of a model {min(row['lines'] / row['nodes'] for row in good):.1%}; ", end="")
    both = [row for row in good if row.get("alone") is not None and row["frontend"] == "export"]
    if both:
        ours, theirs = (statistics.median(row[key] for row in both) for key in ("seconds", "alone"))
        print(f"median {ours:.2f} s, torch.export alone {theirs:.2f} s", end="")
    print()
    for key, what in (("ran", "a run of the graph under the policy"), ("eager", "an eager recording")):
        checked = [row[key] for row in good if key in row]
        if checked:
            equal, all_ = sum(one[0] for one in checked), sum(one[1] for one in checked)
            print(f"{kind}: the dtype of {equal} of {all_} nodes of {len(checked)} models is that of {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="timm, transformers, or kind/name")
    parser.add_argument("--frontend", default="auto")
    parser.add_argument("--dtypes", action="store_true")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a model")
    parser.add_argument("--first", type=int, help="so many models of each kind")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    _warm()
    for kind in ("timm", "transformers"):
        names = [one.partition("/")[2] for one in options.what if one.partition("/")[0] == kind]
        if not names:
            continue
        __import__(kind)
        all_ = list(getattr(zoo, kind.upper()))[: options.first]
        print(f"\n{kind:28} front end  seconds  export  calls   line  columns  dtype as run, as recorded")
        rows = {}
        for name in all_ if "" in names else names:
            rows[name] = _limited(kind, name, options)
            _print_row(name, rows[name])
        _print_sums(kind, rows)


if __name__ == "__main__":
    main()

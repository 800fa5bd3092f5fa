"""Known defects: each bad model is marked at its line, by its code, with and without a run; its repair is silent.

As a script it prints the table of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph.known import Pair, pairs
from torch import nn

from amplint.findings import Severity
from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.marks import Mark, marks
from amplint.graph.ranges import analyse

PAIRS = list(pairs())


def found(model: Callable[[], nn.Module], inputs: tuple[Any, ...], run: bool) -> list[Mark]:
    """The warnings and errors of a model."""
    torch.manual_seed(0)
    captured = capture(model(), inputs, {}, Precision(), "export")
    calibration = measure(captured) if run else None
    told = marks(captured, analyse(captured), calibration)
    return [mark for mark in told if mark.severity is not Severity.NOTE]


def expected(pair: Pair) -> set[tuple[str, int]]:
    rows, first = inspect.getsourcelines(pair.bad)
    return {(pair.code, first + at) for at, row in enumerate(rows) if row.rstrip().endswith("# !")}


def places(found: list[Mark]) -> set[tuple[str, int]]:
    return {(mark.code, mark.place.row if mark.place else 0) for mark in found}


def test_there_are_enough() -> None:
    assert len(PAIRS) >= 25
    assert all(len(expected(pair)) == 1 for pair in PAIRS)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@pytest.mark.parametrize("run", [False, True], ids=["static", "calibrated"])
def test_the_bad_one_is_marked_at_its_line(pair: Pair, run: bool) -> None:
    if not run and not pair.static:
        pytest.skip("seen by a run only")
    assert places(found(pair.bad, pair.inputs(), run)) == expected(pair)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@pytest.mark.parametrize("run", [False, True], ids=["static", "calibrated"])
def test_its_repair_is_silent(pair: Pair, run: bool) -> None:
    assert places(found(pair.good, pair.inputs(), run)) == set()


if __name__ == "__main__":
    print("| case | report | code | without a run | measured | repaired |\n| --- | --- | --- | --- | --- | --- |")
    for pair in PAIRS:
        cells = []
        for run in (False, True):
            seen = found(pair.bad, pair.inputs(), run)
            hit = places(seen) == expected(pair)
            bits = seen[0].headroom_bits if seen else None
            cells.append((f"{seen[0].verdict}, {bits or 0:+.1f} bits" if seen else "–") + ("" if hit else " (WRONG)"))
        silent = not any(found(pair.good, pair.inputs(), run) for run in (False, True))
        print(
            f"| {pair.name} | {pair.report} | {pair.code} | {' | '.join(cells)} | {'silent' if silent else 'FOUND'} |"
        )

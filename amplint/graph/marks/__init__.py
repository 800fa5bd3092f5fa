"""Marks: where half precision cannot hold what the model computes, at the user's own lines.

marks(captured, ranges, calibration) → [Mark], worst first; to_finding(mark) → Finding.
"""

from __future__ import annotations

from torch import fx

from amplint.graph.calibrate import Calibration
from amplint.graph.capture.captured import Captured
from amplint.graph.marks.backward import gradients, swamped
from amplint.graph.marks.facts import gather
from amplint.graph.marks.mark import Mark, to_finding
from amplint.graph.marks.merged import merged
from amplint.graph.marks.overflow import overflows
from amplint.graph.marks.precision import losses
from amplint.graph.marks.underflow import underflows
from amplint.graph.ranges.domain import Range

__all__ = ["Mark", "marks", "to_finding"]


def marks(
    captured: Captured, ranges: dict[fx.Node, Range], calibration: Calibration | None, scale: float | None = None
) -> list[Mark]:
    """What is to be told of a captured model, worst first. `scale`: that of the script's GradScaler, where it is
    known; 1 where it has none."""
    facts = gather(captured, ranges, calibration)
    told: set[fx.Node] = set()
    under = list(underflows(facts, told))
    found = [*overflows(facts, told), *under, *losses(facts)]
    lines = {(mark.place.path, mark.place.row) for mark in found if mark.place and mark.verdict != "tight"}
    for mark in (*gradients(facts, scale), *swamped(facts)):  # what a line does forward explains what it does backward
        if mark.place is None or (mark.place.path, mark.place.row) not in lines:
            found.append(mark)
    return merged(found)

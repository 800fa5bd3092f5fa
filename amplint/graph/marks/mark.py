"""A mark: a node whose values, or whose gradient, half precision cannot hold; and the finding it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from amplint.findings import Finding, Location, Range, Severity
from amplint.graph.places import Place

SEVERITIES = {
    "certain": Severity.ERROR,
    "calibrated": Severity.WARNING,
    "likely": Severity.WARNING,
    "tight": Severity.NOTE,
}


@dataclass(frozen=True)
class Mark:
    """One line of the user's. `verdict`: certain (of any input, or of a constant), calibrated (measured on the batch),
    likely (estimated), tight (near the limit). `headroom_bits`: log2(limit / largest value), below 0 beyond it."""

    code: str
    verdict: str
    node: fx.Node
    place: Place | None
    headroom_bits: float | None
    message: str
    cause: str
    remedy: str
    severity: Severity
    count: int = 1  # how many nodes of this line and module class
    modules: tuple[str, ...] = ()  # their paths, the worst first
    nodes: tuple[fx.Node, ...] = ()  # all of them, where there are several
    about: str = ""  # which of its code's claims it makes, for verify's counters


def to_finding(mark: Mark) -> Finding:
    place = mark.place or Place("", 1)
    start = Location(place.row, max(place.column, 1))
    end = Location(max(place.end_row, place.row), max(place.end_column, start.column))
    what = f"{mark.message}: {mark.cause}" if mark.cause else mark.message
    return Finding(
        mark.code, what, place.path, Range(start, end), mark.severity, help=mark.remedy, verdict=mark.verdict
    )

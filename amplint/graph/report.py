"""The report of a trace as one dictionary of JSON values, for amplint/report/trace/ and for other programs.

{"version": 1, "target": facts, "nodes": [...], "marks": [...], "gradients": {...} | None, "plan": {...},
 "unknown": {operation: count}}. What is infinite or unbounded is None.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import fx

from amplint.graph.calibrate import Calibration
from amplint.graph.capture.captured import Captured, dtype_of, place_of
from amplint.graph.marks import Mark
from amplint.graph.plan import Plan
from amplint.graph.ranges.domain import Range
from amplint.graph.stats import LIMITS, Stats

VERSION = 1


def summarise(
    captured: Captured,
    ranges: dict[fx.Node, Range],
    calibration: Calibration | None,
    marks: list[Mark],
    plan: Plan,
    gradients: dict[str, Any] | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """All that was found of a captured model. `gradients`: the summary that the scaler's window comes with."""
    dtype = captured.precision.dtype
    marked = {node: index for index, mark in reversed(list(enumerate(marks))) for node in (mark.node, *mark.nodes)}
    unknown: dict[str, int] = {}
    nodes = []
    for node in captured.nodes():
        found = ranges.get(node)
        measured = calibration.forward.get(node) if calibration else None
        arrived = calibration.gradient.get(node) if calibration else None
        if found is not None and found.unknown == str(node.target):
            unknown[found.unknown] = unknown.get(found.unknown, 0) + 1
        nodes.append(
            {
                "name": node.name,
                "op": str(node.target),
                "module": [list(part) for part in node.meta.get("module", ())],
                "shape": _shape(node),
                "dtype": _name(dtype_of(node)),
                "list": plan.lists.get(node, ""),
                "place": _place(node),
                **_range(found, dtype),
                "measured": _stats(measured, dtype),
                "gradient": _stats(arrived, dtype),
                "mark": marked.get(node),
            }
        )
    return {
        "version": VERSION,
        "target": facts,
        "nodes": nodes,
        "marks": [_mark(mark) for mark in marks],
        "gradients": gradients,
        "plan": {**plan.counts, "casts": plan.made, "bytes": plan.bytes, "fp32_share": plan.fp32_share},
        "unknown": unknown,
    }


def _range(found: Range | None, dtype: torch.dtype) -> dict[str, Any]:
    if found is None:
        return {"low": None, "high": None, "amax": None, "safe": False, "infinite": False, "unknown": "", "why": None}
    size = max(abs(found.low), abs(found.high))
    return {
        "low": _finite(found.low),
        "high": _finite(found.high),
        "amax": _finite(found.amax),
        "safe": size < LIMITS[dtype].overflow and not found.infinite,
        "infinite": found.infinite,
        "unknown": found.unknown,
        "why": list(found.why) if found.why else None,
    }


def _stats(stats: Stats | None, dtype: torch.dtype) -> dict[str, Any] | None:
    if stats is None:
        return None
    return {
        "absmax": _finite(stats.absmax),
        "tiny": _finite(stats.tiny),
        "flushed": stats.flushed(dtype),
        "subnormal": stats.subnormal(dtype),
        "overflow": stats.overflow(dtype),
        "infinite": stats.infinite,
        "nan": stats.nan,
        "hist": stats.hist(),
    }


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "code": mark.code,
        "severity": str(mark.severity),
        "verdict": mark.verdict,
        "headroom_bits": _finite(mark.headroom_bits),
        "message": mark.message,
        "cause": mark.cause,
        "remedy": mark.remedy,
        "place": asdict(mark.place) if mark.place else None,
        "node": mark.node.name,
        "count": mark.count,
        "modules": list(mark.modules),
    }


def _place(node: fx.Node) -> dict[str, Any] | None:
    place = place_of(node)
    return asdict(place) if place else None


def _shape(node: fx.Node) -> list[int]:
    value = node.meta.get("val")
    return [int(size) for size in value.shape] if isinstance(value, torch.Tensor) else []


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.") if dtype else ""


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None

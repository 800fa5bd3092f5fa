"""From what a door saw to the child's answer: capture, ranges, calibration, marks, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from amplint.findings import Finding
from amplint.graph import fills, gradients, marks, plan, ranges
from amplint.graph.calibrate import Calibration, CalibrationError, measure
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.ladder import CaptureError, capture
from amplint.graph.child.answer import describe, internal
from amplint.graph.child.seen import Refused, Seen
from amplint.graph.ranges import Declared
from amplint.graph.report import summarise

_HALVES = (torch.float16, torch.bfloat16)


def answer(seen: Seen, job: dict[str, Any]) -> dict[str, Any]:
    """What the child answers: a report and findings, or an error in a line. Never raises."""
    try:
        with _calm():
            return analyse(seen, job)
    except (CaptureError, Refused) as error:
        return {"error": str(error)}
    except (MemoryError, RuntimeError) as error:
        if describe(error).startswith("out of memory"):
            return {"error": f"{type(seen.model).__name__} could not be traced: {describe(error)}; try a smaller batch"}
        return {"error": internal(error)}
    except Exception as error:
        return {"error": internal(error)}


def analyse(seen: Seen, job: dict[str, Any]) -> dict[str, Any]:
    """The report and the findings of one model on one batch."""
    notes = list(seen.notes)
    precision = _precision(seen, job, notes)
    seconds = seen.seconds
    with _timed(seconds, "capture"), fills.bounded() as cut:
        torch.set_rng_state(seen.rng)
        captured = capture(seen.model, seen.args, seen.kwargs, precision, job["frontend"])
    with _timed(seconds, "ranges"):
        found = ranges.analyse(captured, _declared(captured, seen))
    with _timed(seconds, "calibration"):
        calibration = _calibrated(captured, seen, notes)
    captured.notes.extend(notes)
    filled = fills.marks(captured, cut)
    lines = {(mark.code, mark.place) for mark in filled}  # what was cut is at the limit there
    others = marks.marks(captured, found, calibration, seen.scale)
    marked = [*filled, *(mark for mark in others if (mark.code, mark.place) not in lines)]
    with _timed(seconds, "plan"):
        casts = plan.plan(captured)
    summed = gradients.summary(captured, calibration, seen.scale) if calibration else None
    told = facts(captured, seen, job, calibration) | {"seconds": seconds}
    report = summarise(captured, found, calibration, marked, casts, summed, told)
    return {"report": report, "findings": [_entry(marks.to_finding(mark)) | {"about": mark.about} for mark in marked]}


def _declared(captured: Captured, seen: Seen) -> dict[str, Declared]:
    """What the command line says of the inputs, by their placeholders: uniform between its ends."""
    told = {id(tensor): (low, high) for tensor, low, high in seen.declared}
    ends = {name: told[id(value)] for name, value in captured.values.items() if id(value) in told}
    return {name: Declared(low, high, (low + high) / 2, (high - low) / 12**0.5) for name, (low, high) in ends.items()}


def _calibrated(captured: Captured, seen: Seen, notes: list[str]) -> Calibration | None:
    torch.set_rng_state(seen.rng)
    try:
        return measure(captured, seen.loss, seen.optimizer)
    except CalibrationError as error:
        notes.append(f"not measured: {error}")
        return None


def _entry(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    return {
        "code": finding.code,
        "message": finding.message,
        "path": finding.path,
        "start": list(finding.range.start),
        "end": list(finding.range.end),
        "severity": finding.severity.value,
        "help": finding.help,
        "verdict": finding.verdict,
    }


def _precision(seen: Seen, job: dict[str, Any], notes: list[str]) -> Precision:
    """What was asked for; where nothing was, a model that is itself half says so, or the script's own region."""
    dtype = next((one.dtype for one in seen.model.parameters() if one.dtype in _HALVES), None)
    mode = job["precision"] or ("half" if dtype else "amp")
    if dtype and not job["precision"]:
        notes.append("the model itself is half: read as with --precision half")
    dtype = dtype or (seen.dtype if seen.dtype in _HALVES else None)
    return Precision(
        mode, getattr(torch, job["dtype"]) if job["dtype"] else dtype or getattr(torch, job["target_dtype"])
    )


def facts(captured: Captured, seen: Seen, job: dict[str, Any], calibration: Calibration | None) -> dict[str, Any]:
    """What the report says of its target."""
    model, precision = seen.model, captured.precision
    return {
        "what": job["target"],
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "frontend": captured.frontend,
        "precision": precision.mode,
        "dtype": str(precision.dtype).removeprefix("torch."),
        "device": "on the CPU by CUDA's rules",
        "batch": [
            shape(leaf) for leaf in pytree.tree_leaves((seen.args, seen.kwargs)) if isinstance(leaf, torch.Tensor)
        ],
        "mode": "train" if model.training else "eval",
        "loss": calibration.loss if calibration else "",
        "value": seen.value,
        "optimizer": seen.optimizer,
        "scale": seen.scale,
        "notes": captured.notes,
    }


def shape(tensor: torch.Tensor) -> str:
    """A tensor's shape and dtype, for a reader."""
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Outside of the script's own contexts: no autocast, gradients on, no default device."""
    with torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.enable_grad():
        yield

"""From what a door saw to the child's answer: capture, ranges, calibration, marks, report."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch.utils import _pytree as pytree

from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.ladder import CaptureError, capture
from amplint.graph.child.seen import Refused, Seen

_HALVES = (torch.float16, torch.bfloat16)


def answer(seen: Seen, job: dict[str, Any]) -> dict[str, Any]:
    """What the child answers: a report and findings, or an error in a line. Never raises."""
    try:
        with _calm():
            return analyse(seen, job)
    except (CaptureError, Refused) as error:
        return {"error": str(error)}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            line = (str(error).strip().splitlines() or ["MemoryError"])[0]
            return {"error": f"out of memory while {type(seen.model).__name__} was traced: {line}; try a smaller batch"}
        return _internal(error)
    except Exception as error:
        return _internal(error)


def analyse(seen: Seen, job: dict[str, Any]) -> dict[str, Any]:
    """The report and the findings of one model on one batch."""
    model, notes = seen.model, list(seen.notes)
    precision = _precision(seen, job, notes)
    seconds: dict[str, float] = {}
    with _timed(seconds, "capture"):
        torch.set_rng_state(seen.rng)
        captured = capture(model, seen.args, seen.kwargs, precision, job["frontend"])
    captured.notes.extend(notes)
    return {"report": _summary(captured, seen, job, seconds), "findings": []}


def _precision(seen: Seen, job: dict[str, Any], notes: list[str]) -> Precision:
    """What was asked for; where nothing was, a model that is itself half says so."""
    dtype = next((one.dtype for one in seen.model.parameters() if one.dtype in _HALVES), None)
    mode = job["precision"] or ("half" if dtype else "amp")
    if dtype and not job["precision"]:
        notes.append("the model itself is half: read as with --precision half")
    wanted = getattr(torch, job["dtype"]) if job["dtype"] else dtype or getattr(torch, job["target_dtype"])
    return Precision(mode, wanted)


def _summary(captured: Captured, seen: Seen, job: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    return {
        "version": 1,
        "target": facts(captured, seen, job) | {"seconds": seconds},
        "nodes": [],
        "marks": [],
        "gradients": None,
        "plan": {"lower": 0, "fp32": 0, "promote": 0, "other": 0, "casts": 0, "bytes": 0},
        "unknown": {},
    }


def facts(captured: Captured, seen: Seen, job: dict[str, Any]) -> dict[str, Any]:
    """What the report says of its target."""
    model, precision = seen.model, captured.precision
    return {
        "what": job["target"],
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "frontend": captured.frontend,
        "precision": precision.mode,
        "dtype": str(precision.dtype).removeprefix("torch."),
        "device": "cpu under CUDA's policy",
        "batch": [
            shape(leaf) for leaf in pytree.tree_leaves((seen.args, seen.kwargs)) if isinstance(leaf, torch.Tensor)
        ],
        "mode": "train" if model.training else "eval",
        "loss": seen.loss_name,
        "value": seen.value,
        "optimizer": asdict(seen.optimizer) if seen.optimizer else None,
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


def _internal(error: Exception) -> dict[str, Any]:
    inside = [
        frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}amplint{os.sep}" in frame.filename
    ]
    place = f"{os.path.basename(inside[-1].filename)}:{inside[-1].lineno}" if inside else "amplint"
    line = (str(error).strip().splitlines() or [""])[0]
    answered = {"error": f"internal error in {place}: {type(error).__name__}: {line}; please report"}
    if os.environ.get("AMPLINT_DEBUG"):
        traceback.print_exception(error)
    return answered

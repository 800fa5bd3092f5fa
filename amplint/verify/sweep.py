"""The largest batch that fits, in FP32 and in AMP, and how many samples a second are trained there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from amplint.verify.curves import main_steps
from amplint.verify.runs import Run

_MOST = 4096  # times the script's own batch
_FULL = ("out of memory", "signal 9", "outofmemory")

Measure = Callable[[str, int], Run]


def sweep(measure: Measure, warmup: int) -> tuple[dict[str, Any] | None, list[str]]:
    """What fits: batch and samples a second of each kind; and what is to be said. `measure` runs a kind with batches of
    so many times the script's."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for kind in ("fp32", "amp"):
        best, why = _largest(kind, measure, warmup)
        notes += [f"batch sweep, {kind.upper()}: {why}"] if why else []
        if best is None:
            return None, notes
        found[kind] = best
    return found, notes


def _largest(kind: str, measure: Measure, warmup: int) -> tuple[dict[str, Any] | None, str]:
    """Doubles the batch until memory is full, or batches grow no more."""
    best: dict[str, Any] | None = None
    factor = 1
    while factor <= _MOST:
        run = measure(kind, factor)
        if run.problem:
            full = any(word in run.problem.lower() for word in _FULL)
            return best, "" if full and best else f"with {factor} times the batch the script {run.problem}"
        seen = _seen(run, warmup)
        if seen is None:
            return best, "the model's batches have no size that could be read"
        if best is not None and seen["batch"] <= best["batch"]:
            return best, f"batches grow no further than {best['batch']}: they are all of the data, or no DataLoader's"
        best = seen
        factor *= 2
    return best, f"{_MOST} times the script's batch still fits"


def _seen(run: Run, warmup: int) -> dict[str, Any] | None:
    """Samples of a step, and a second: medians, without the first steps where there are others."""
    steps = main_steps(run) if run.steps else []
    steps = steps[warmup:] or steps[-1:]
    samples = [step["samples"] for step in steps if step.get("samples")]
    seconds = [step["seconds"] for step in steps if step.get("seconds")]
    if not samples or not seconds:
        return None
    batch = statistics.median(samples)
    return {"batch": int(batch), "samples_per_s": batch / statistics.median(seconds)}

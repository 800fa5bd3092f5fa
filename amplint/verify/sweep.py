"""The largest batch that fits, in FP32 and in AMP, and how many samples a second are trained there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from amplint.verify.curves import main_steps
from amplint.verify.runs import Run

_MOST = 4096  # times the script's own batch
_FULL = ("out of memory", "signal 9", "outofmemory")
_STOPPED = "was stopped after"

Measure = Callable[[str, int, float], Run]
Clock = Callable[[], float]


def sweep(
    measure: Measure, warmup: int, seconds: float, clock: Clock = time.monotonic
) -> tuple[dict[str, Any] | None, list[str]]:
    """What fits: batch and samples a second of each kind; and what is to be said. `measure` runs a kind with batches of
    so many times the script's, for so many seconds at most. FP32 has half of the time, AMP what is left."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    end = clock() + seconds
    for kind in ("fp32", "amp"):
        until = end if kind == "amp" else end - seconds / 2
        best, why = _largest(kind, measure, warmup, until, clock)
        notes += [f"batch sweep, {kind.upper()}: {why}"] if why else []
        if best is None:
            return None, notes
        found[kind] = best
    return found, notes


def _largest(kind: str, measure: Measure, warmup: int, until: float, clock: Clock) -> tuple[dict[str, Any] | None, str]:
    """Doubles the batch until memory is full, batches grow no more, or there is no time for another run. What two
    batches took says how far memory goes: the doublings up to there are left out, and what was too bold is halved.
    "full" of what is found: whether twice as much does not fit."""
    best: dict[str, Any] | None = None
    fits, factor, taken = 0, 1, {}
    full_at = 2 * _MOST
    lasted = 0.0
    while fits < factor < full_at:
        began = clock()
        if best is not None and until - began <= lasted:
            return best, f"no time for more than {fits} times the script's batch; --sweep-time gives it longer"
        run = measure(kind, factor, max(1.0, until - began))
        lasted = clock() - began
        if run.problem.startswith(_STOPPED):
            return best, f"no time for {factor} times the script's batch; --sweep-time gives it longer"
        if run.problem:
            full = any(word in run.problem.lower() for word in _FULL)
            if not full or best is None:
                return best, f"with {factor} times the batch the script {run.problem}"
            full_at, factor = factor, factor // 2
            best["full"] = factor == fits
            continue
        seen = _seen(run, warmup)
        if seen is None:
            return best, "the model's batches have no size that could be read"
        if best is not None and seen["batch"] < best["batch"] * factor / fits:
            grown = best if seen["batch"] <= best["batch"] else seen | {"full": False}
            return grown, f"batches grow no further than {grown['batch']}: they are all of the data, or no DataLoader's"
        best, fits = seen | {"full": 2 * factor == full_at <= _MOST}, factor
        taken[factor] = run.answer.get("memory")
        factor = max(2 * factor, min(_room(taken, run), full_at // 2))
    return best, f"{fits} times the script's batch still fits" if fits >= _MOST else ""


def _room(taken: dict[int, Any], run: Run) -> int:
    """The largest power of two times the batch for which memory should do, by a line through the first two; 0 where
    that cannot be told."""
    total = (run.answer.get("device") or {}).get("memory")
    if len(taken) != 2 or not total or not all(taken.values()):
        return 0
    (low, first), (high, second) = taken.items()
    slope = (second - first) / (high - low)
    room = (total - first) / slope + low if slope > 0 else 0
    return min(_MOST, 1 << int(room).bit_length() - 1) if room >= 1 else 0


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

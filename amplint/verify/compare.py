"""The verdict: whether the AMP run trains as the FP32 runs do. Plain lists, no torch.

The AMP run is compared with the FP32 run of the same seed that makes the same steps: the same weights at the start, the
same batches. Its loss curve may be as far from FP32's as verify/band.py measures. Where it is farther, AMP is run from
the other seeds, too: it differs if it does so every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amplint.report.numbers import many, times
from amplint.verify.band import FLOORS, band, between
from amplint.verify.curves import Curve, bounds, curves, main_steps, mean, skipped, value, windows
from amplint.verify.exact import differences
from amplint.verify.runs import Run

SAME, DIFFERENT, TOO_FEW = "same", "not the same", "not enough steps"
LEAST = 8  # steps, below which a curve is none
_SKIPS = 0.1  # share of steps after the first three
_BEFORE = 3  # attempts with which a scaler finds its scale
_WIDE = 0.3  # share of the loss that a verdict hardly tells anything about
_NORMS = 3.0  # times that the gradients' norm may differ

Severity = Callable[[str], str]


@dataclass
class Verdict:
    """A word, and why. `doubts`: what more runs would tell: first (the same FP32 run again), curve (AMP from the other
    seeds)."""

    word: str = SAME
    reasons: list[str] = field(default_factory=list)
    steps: int = 0
    why: str = ""
    relative: float = 0.0
    doubts: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)  # what speaks for it
    hard: bool = False  # nothing that another run could tell would change it

    def fail(self, reason: str, doubt: str = "") -> None:
        self.word = DIFFERENT
        self.reasons.append(reason)
        if doubt:
            self.doubts.add(doubt)
        else:
            self.hard = True


@dataclass(frozen=True)
class Runs:
    """What is compared. `amp` and `fp32` are from the seeds 0, 1, …"""

    fp32: Sequence[Run]
    amp: Sequence[Run]
    rounded: Sequence[Run] = ()  # FP32, off by a rounding, each from the seed that it says
    followed: Mapping[int, Run] = field(default_factory=dict)  # FP32 without the steps that AMP skipped, by seed

    def reference(self, seed: int) -> Run:
        return self.followed.get(seed, self.fp32[seed])


def compare(runs: Runs, dtype: str, severity: Severity) -> Verdict:
    """Judge the AMP runs by the FP32 runs."""
    first, half = runs.fp32[0], runs.amp[0]
    verdict = Verdict(
        steps=min(len(main_steps(first)), len(main_steps(half))) if first.steps and half.steps else 0,
    )
    _faults(half, severity, verdict)
    if half.problem:
        verdict.fail(f"in AMP the script {half.problem}")
    if half.steps:
        _finite(first, half, verdict)
        _skips(half, 0 in runs.followed, verdict)
    if first.steps and half.steps:
        for said in differences([*runs.fp32, *runs.rounded], half, runs.reference(0)):
            verdict.fail(said)
    if verdict.steps < LEAST:
        if not verdict.hard:
            verdict.word = TOO_FEW
            verdict.reasons = [f"{many(verdict.steps, 'step')} to compare; {LEAST} at least are a curve"]
        return verdict
    seen = 0
    pairs = list(zip(curves(first), curves(half), strict=False))
    for index, (one, other) in enumerate(pairs):
        name = "loss" if len(pairs) == 1 else f"loss at {one.site}"
        _start(name, one, other, [_nth(run, index) for run in runs.fp32], dtype, verdict)
        seen += _course(name, index, runs, dtype, verdict)
    if not seen and not verdict.hard:
        verdict.word = TOO_FEW
        verdict.reasons = [f"no backward has {LEAST} losses that are numbers, in every run"]
        return verdict
    _norms(first, half, runs.fp32, verdict)
    if verdict.word == SAME:
        verdict.reasons = verdict.said
        if verdict.relative > _WIDE:
            verdict.reasons.append(f"the band is wide ({_percent(verdict.relative, 1)}): more steps make it narrower")
    return verdict


# -- what needs no curve ------------------------------------------------------------------------------------------


def _faults(half: Run, severity: Severity, verdict: Verdict) -> None:
    """The protocol of scaler and autocast, as the probe saw it."""
    for fault in half.answer.get("faults", ()):
        if severity(fault["code"]) == "error":
            where = f" at {fault['place']}" if fault.get("place") else ""
            verdict.fail(f"{fault['code']}: {fault['what']}{where} ({times(fault['count'])})")


def _finite(first: Run, half: Run, verdict: Verdict) -> None:
    """Losses that are no numbers in AMP, and are in FP32."""
    for one, other in zip(curves(first), curves(half), strict=False):
        bad = [at for at, loss in zip(other.attempts, other.values, strict=True) if not math.isfinite(loss)]
        was = sum(not math.isfinite(loss) for loss in one.values)
        if len(bad) > was:
            losses = "1 loss is" if len(bad) == 1 else f"{len(bad)} of {len(other.values)} losses are"
            verdict.fail(f"{losses} not finite in AMP, first at step {bad[0] + 1}; in FP32 {was or 'none'}")
    if half.answer.get("diverged") and not first.answer.get("diverged"):
        verdict.fail("parameters are not finite after the AMP run")


def _skips(half: Run, followed: bool, verdict: Verdict) -> None:
    steps, gone = main_steps(half), skipped(half)
    scales = [value(step["scale"]) for step in steps if step["scale"] is not None]
    late = [index for index in gone if index >= _BEFORE]
    after = max(1, len(steps) - _BEFORE)
    settled = f"; the scale ends at {scales[-1]:g}" if scales else ""
    skips = many(len(gone), "step")
    compared = f"; FP32 is compared without {'it' if len(gone) == 1 else 'them'}" if followed else ""
    if scales and scales[-1] < 1 and gone:
        verdict.fail(f"the loss scale never settles: {skips} of {len(steps)} skipped, it fell to {scales[-1]:g}")
    elif len(steps) >= LEAST and sum(index >= len(steps) // 2 for index in late) > _SKIPS * 2.5 * len(steps) / 2:
        verdict.fail(
            f"the loss scale never settles: {len(gone)} of {many(len(steps), 'step')} skipped, to the end{settled}"
        )
    elif len(late) > max(1.0, _SKIPS * after):
        verdict.said.append(f"{len(gone)} of {many(len(steps), 'step')} skipped by the scaler{settled}{compared}")
    elif gone:
        verdict.said.append(f"{skips} skipped by the scaler while it found its scale{settled}{compared}")


# -- the curve ----------------------------------------------------------------------------------------------------


def _start(name: str, one: Curve, other: Curve, all_: Sequence[Curve | None], dtype: str, verdict: Verdict) -> None:
    """The first loss: same weights, same batch, so that only rounding is between the two."""
    if one.attempts[0] or other.attempts[0] or not math.isfinite(one.values[0] + other.values[0]):
        return
    a, b = one.values[0], other.values[0]
    starts = [curve.values[0] for curve in all_ if curve is not None and math.isfinite(curve.values[0])]
    floor = FLOORS[dtype] * max(abs(a), 0.05 * mean(_finite_of(map(abs, one.values))))
    spread = max(starts) - min(starts)
    said = f"first {name} {a:.5g} in FP32, {b:.5g} in AMP ({_percent(abs(a - b), abs(a))})"
    if abs(a - b) > max(floor, spread):
        verdict.fail(f"{said}, with the same weights on the same batch", "first")
    else:
        if abs(a - b) > floor:
            verdict.doubts.add("first")
            said += f"; FP32's seeds differ by {_percent(spread, abs(a))}"
        verdict.said.append(said)


def _course(name: str, index: int, runs: Runs, dtype: str, verdict: Verdict) -> bool:
    """The curve, window by window; False where there is none. With AMP from several seeds, what they differ by in the
    mean is judged."""
    seeds, halves = _all(runs.fp32, index), _all(runs.amp, index)
    references = _all([runs.reference(seed) for seed in range(min(len(halves), len(seeds)))], index)
    rounded = [
        (one, two) for run in runs.rounded if (one := _nth(run, index)) and (two := _nth(runs.fp32[run.seed], index))
    ]
    known = [*seeds, *halves, *references, *(one for one, _ in rounded)]
    count = min(len(curve.values) for curve in known)
    places = [place for place in bounds(count) if all(_known(curve, place) for curve in known)]
    if count < LEAST or not places:
        return False
    may = band(seeds, rounded, places, dtype)
    apart = [between(half, reference, places) for half, reference in zip(halves, references, strict=False)]
    agreed, allowed = may.agreed(apart)
    verdict.why = verdict.why or (
        f"{may.why} in a window of {places[0][1]} steps"
        if any(a > b for a, b in zip(may.noise, may.floor, strict=True))
        else f"the floor for {dtype}: rounding"
    )
    relative = sorted(one / (whole or 1e-300) for one, whole in zip(allowed, may.size, strict=True))[len(allowed) // 2]
    verdict.relative = max(verdict.relative, min(relative, 1e6))
    worst = max(range(len(places)), key=lambda at: abs(agreed[at]) / (allowed[at] or 1e-300))
    low, high = places[worst]
    steps = f"{halves[0].attempts[low] + 1}–{halves[0].attempts[high - 1] + 1}"
    far, most = (_percent(abs(one[worst]), may.size[worst]) for one in (agreed, allowed))
    said = f"{name} over steps {steps}, the worst of {len(places)} windows: {far} from FP32, {most} allowed"
    course = windows(seeds[0].values, places)
    if abs(agreed[worst]) > allowed[worst]:
        verdict.fail(said, "curve")
    elif _still(course, agreed, allowed):
        verdict.fail(f"{name} does not fall as in FP32: {course[0]:.4g} → {course[-1]:.4g} there", "curve")
    else:
        verdict.said.append(said)
    return True


def _still(course: Sequence[float], apart: Sequence[float], allowed: Sequence[float]) -> bool:
    """FP32 learned, beyond what is noise, and AMP did not."""
    fell = course[0] - course[-1]
    fell_half = fell + apart[0] - apart[-1]
    return fell > 2 * max(allowed[0], allowed[-1]) and fell_half < 0.25 * fell


def _norms(first: Run, half: Run, fp32: Sequence[Run], verdict: Verdict) -> None:
    """The gradients' norm: of the size that it has in FP32."""
    ratios = []
    for one, other in zip(main_steps(first), main_steps(half), strict=False):
        a, b = value(one["norm"]), value(other["norm"])
        if math.isfinite(a + b) and a > 0 and not other["skipped"]:
            ratios.append(b / a)
    if len(ratios) < LEAST // 2:
        return
    middle = sorted(ratios)[len(ratios) // 2]
    spread = [sorted(norms)[len(norms) // 2] for run in fp32 if (norms := _norms_of(run))]
    wide = max(spread) / max(min(spread), 1e-300) if spread else 1.0
    said = f"gradient norm {middle:.3g} times FP32's (median)"
    if not 1 / (_NORMS * wide) < middle < _NORMS * wide:
        verdict.fail(said)
    else:
        verdict.said.append(said)


def _norms_of(run: Run) -> list[float]:
    return _finite_of(value(step["norm"]) for step in main_steps(run)) if run.steps else []


# -- words and numbers --------------------------------------------------------------------------------------------


def _known(curve: Curve, place: tuple[int, int]) -> bool:
    """Whether a window holds a number."""
    return any(math.isfinite(one) for one in curve.values[slice(*place)])


def _all(runs: Sequence[Run], index: int) -> list[Curve]:
    return [curve for run in runs if (curve := _nth(run, index)) is not None]


def _nth(run: Run, index: int) -> Curve | None:
    found = curves(run)
    return found[index] if index < len(found) else None


def _finite_of(values: Any) -> list[float]:
    return [one for one in values if math.isfinite(one)]


def _percent(part: float, whole: float) -> str:
    share = 100 * part / (whole or 1e-300)
    return f"{share:.2g} %" if 0.01 <= share < 100 else f"{share:.0f} %" if share >= 100 else "< 0.01 %"

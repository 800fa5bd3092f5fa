"""The verdict: whether the AMP run trains as the FP32 runs do. Plain lists, no torch.

The AMP run is compared with the FP32 run of the same seed: the same weights at the start, the same batches. Two runs of
a script that differ in rounding only drift apart as training goes on, at most as far as runs from other seeds are; so
what may differ in a window of the loss curve hangs on what the FP32 seeds differ by there and in the windows beside it.
Where AMP differs by more, AMP runs from the other seeds tell whether it does so every time. Where the seeds agree,
rounding itself is the floor: half's epsilon is 0.1 % in FP16 and 0.8 % in BF16, the rounding of some ten operations in
a row adds up to about ten times that, and half of it is left after the mean over a batch, so 1 % and 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from amplint.verify.curves import Curve, bounds, curves, kept, main_steps, scatter, skipped, value, windows
from amplint.verify.runs import Run

SAME, DIFFERENT, TOO_FEW = "same", "not the same", "not enough steps"
FLOORS = {"float16": 0.01, "bfloat16": 0.05}
LEAST = 8  # steps, below which a curve is none
_SKIPS = 0.1  # share of steps after the first three
_BEFORE = 3  # attempts with which a scaler finds its scale
_WIDE = 0.3  # share of the loss that a verdict hardly tells anything about
_NORMS = 3.0  # times that the gradients' norm may differ

Severity = Callable[[str], str]


@dataclass
class Verdict:
    """A word, and why. `doubts`: what another run would tell: first (the same FP32 run again), skips (an FP32 run that
    leaves out the same steps), curve (AMP from the other seeds)."""

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


def compare(
    fp32: Sequence[Run], amp: Sequence[Run], dtype: str, severity: Severity, delayed: Run | None = None
) -> Verdict:
    """Judge AMP runs by the FP32 runs of the same seeds. `delayed`: FP32 without the steps that AMP skipped."""
    verdict = Verdict(
        steps=min(len(main_steps(run)) for run in (fp32[0], amp[0])) if fp32[0].steps and amp[0].steps else 0
    )
    first, half = fp32[0], amp[0]
    _faults(half, severity, verdict)
    if half.problem:
        verdict.fail(f"in AMP the script {half.problem}")
    if half.steps:
        _finite(first, half, verdict)
        _skips(half, verdict)
    if verdict.steps < LEAST:
        if not verdict.hard:
            verdict.word = TOO_FEW
            verdict.reasons = [f"{_steps(verdict.steps)} to compare; {LEAST} at least are a curve"]
        return verdict
    seen = 0
    pairs = list(zip(curves(first), curves(half), strict=False))
    for index, (one, other) in enumerate(pairs):
        name = "loss" if len(pairs) == 1 else f"loss at {one.site}"
        _start(name, one, other, [_nth(run, index) for run in fp32], dtype, verdict)
        seen += _course(name, index, fp32, amp, delayed, dtype, verdict)
    if not seen and not verdict.hard:
        verdict.word = TOO_FEW
        verdict.reasons = [f"no backward has {LEAST} losses that are numbers, in every run"]
        return verdict
    _norms(first, half, fp32, verdict)
    if verdict.word == SAME:
        wide = [f"the band is wide ({verdict.relative:.0%}): more --steps make it narrower"] * (
            verdict.relative > _WIDE
        )
        verdict.reasons = verdict.said + wide
    return verdict


# -- what needs no curve ------------------------------------------------------------------------------------------


def _faults(half: Run, severity: Severity, verdict: Verdict) -> None:
    """The protocol of scaler and autocast, as the probe saw it."""
    for fault in half.answer.get("faults", ()):
        if severity(fault["code"]) == "error":
            where = f" at {fault['place']}" if fault.get("place") else ""
            verdict.fail(f"{fault['code']}: {fault['what']}{where} ({_times(fault['count'])})")


def _finite(first: Run, half: Run, verdict: Verdict) -> None:
    """Losses that are no numbers in AMP, and are in FP32."""
    for one, other in zip(curves(first), curves(half), strict=False):
        bad = [at for at, loss in zip(other.attempts, other.values, strict=True) if not math.isfinite(loss)]
        was = sum(not math.isfinite(loss) for loss in one.values)
        if len(bad) > was:
            losses = "1 loss is" if len(bad) == 1 else f"{len(bad)} of {len(other.values)} losses are"
            verdict.fail(f"{losses} not finite in AMP, first at step {bad[0] + 1}; in FP32 {was or 'none'}")
    if half.answer.get("nonfinite_parameters") and not first.answer.get("nonfinite_parameters"):
        verdict.fail("parameters are not finite after the AMP run")


def _skips(half: Run, verdict: Verdict) -> None:
    steps, gone = main_steps(half), skipped(half)
    scales = [value(step["scale"]) for step in steps if step["scale"] is not None]
    late = [index for index in gone if index >= _BEFORE]
    after = max(1, len(steps) - _BEFORE)
    settled = f"; the scale ends at {scales[-1]:g}" if scales else ""
    if scales and scales[-1] < 1 and gone:
        verdict.fail(
            f"the loss scale never settles: {_steps(len(gone))} of {len(steps)} skipped, it fell to {scales[-1]:g}"
        )
    elif len(steps) >= LEAST and sum(index >= len(steps) // 2 for index in late) > _SKIPS * 2.5 * len(steps) / 2:
        verdict.fail(f"the loss scale never settles: {len(gone)} of {_steps(len(steps))} skipped, to the end{settled}")
    elif len(late) > max(1.0, _SKIPS * after):
        verdict.said.append(f"{len(gone)} of {_steps(len(steps))} skipped by the scaler{settled}")
    elif gone:
        verdict.said.append(f"{_steps(len(gone))} skipped by the scaler while it found its scale{settled}")


# -- the curve ----------------------------------------------------------------------------------------------------


def _start(name: str, one: Curve, other: Curve, all_: Sequence[Curve | None], dtype: str, verdict: Verdict) -> None:
    """The first loss: same weights, same batch, so that only rounding is between the two."""
    if one.attempts[0] or other.attempts[0] or not math.isfinite(one.values[0] + other.values[0]):
        return
    a, b = one.values[0], other.values[0]
    starts = [curve.values[0] for curve in all_ if curve is not None and math.isfinite(curve.values[0])]
    floor = FLOORS[dtype] * max(abs(a), 0.05 * _size(one.values))
    spread = max(starts) - min(starts)
    said = f"first {name} {a:.5g} in FP32, {b:.5g} in AMP ({_percent(abs(a - b), abs(a))})"
    if abs(a - b) > max(floor, spread):
        verdict.fail(f"{said}, with the same weights on the same batch", "first")
    else:
        if abs(a - b) > floor:
            verdict.doubts.add("first")
            said += f"; FP32's seeds differ by {_percent(spread, abs(a))}"
        verdict.said.append(said)


def _course(
    name: str, index: int, fp32: Sequence[Run], amp: Sequence[Run], delayed: Run | None, dtype: str, verdict: Verdict
) -> bool:
    """The curve, window by window; False where there is none. With AMP from several seeds, what they differ by in the
    mean is judged."""
    seeds = [curve for run in fp32 if (curve := _nth(run, index)) is not None]
    halves = [curve for run in amp if (curve := _nth(run, index)) is not None]
    count = min(len(curve.values) for curve in (*seeds, *halves))
    if count < LEAST:
        return False
    places = [place for place in bounds(count) if all(_known(curve, place) for curve in (*seeds, *halves))]
    if not places:
        return False
    means = [windows(curve.values, places) for curve in seeds]
    size = [max(abs(one), 0.05 * _size(seeds[0].values)) for one in means[0]]
    floor = [FLOORS[dtype] * one for one in size]
    noise = _noise(means, seeds[0].values, places)
    allowed = [max(a, b / math.sqrt(len(halves))) for a, b in zip(floor, noise, strict=True)]
    apart = _apart(index, fp32, amp, delayed, places, means)
    worst = max(range(len(places)), key=lambda at: abs(apart[at]) / (allowed[at] or 1e-300))
    relative = sorted(one / (whole or 1e-300) for one, whole in zip(allowed, size, strict=True))[len(size) // 2]
    verdict.relative = max(verdict.relative, min(relative, 1e6))
    by = f"{len(seeds)} FP32 seeds differ" if any(a > b for a, b in zip(noise, floor, strict=True)) else "rounding"
    verdict.why = verdict.why or (
        f"what {by} by in a window of {places[0][1]} steps" if "seeds" in by else f"the floor for {dtype}: rounding"
    )
    low, high = places[worst]
    steps = f"{halves[0].attempts[low] + 1}–{halves[0].attempts[high - 1] + 1}"
    far, may = _percent(abs(apart[worst]), size[worst]), _percent(allowed[worst], size[worst])
    said = f"{name} over steps {steps}, the worst of {len(places)} windows: {far} from FP32, {may} allowed"
    if abs(apart[worst]) > allowed[worst]:
        verdict.fail(said, "skips" if delayed is None and skipped(amp[0]) else "curve")
    elif _still(means, apart, allowed):
        verdict.fail(f"{name} does not fall as in FP32: {means[0][0]:.4g} → {means[0][-1]:.4g} there", "curve")
    else:
        verdict.said.append(said)
        if delayed is None and skipped(amp[0]) and 2 * abs(apart[worst]) > allowed[worst]:
            verdict.doubts.add("skips")  # it is the delay, most likely
    return True


def _apart(
    index: int,
    fp32: Sequence[Run],
    amp: Sequence[Run],
    delayed: Run | None,
    places: Sequence[tuple[int, int]],
    means: Sequence[Sequence[float]],
) -> list[float]:
    """How far AMP's windows are from FP32's: by attempts, or without the losses of skipped steps, whichever is nearer;
    against the FP32 run that skips the same steps where there is one."""
    found = []
    for number, run in enumerate(amp):
        half = _nth(run, index)
        if half is None or number >= len(means):
            continue
        exact = _nth(delayed, index) if delayed is not None and not number else None
        reference = windows(exact.values, places) if exact is not None else means[number]
        ways = [[a - b for a, b in zip(windows(half.values, places), reference, strict=True)]]
        if skipped(run) and exact is None:
            short = kept(half, run)
            inner = bounds(len(short))
            if len(inner) == len(places):
                full = windows(_nth(fp32[number], index).values[: len(short)], inner)  # type: ignore[union-attr]
                ways.append([a - b for a, b in zip(windows(short, inner), full, strict=True)])
        found.append(min(ways, key=lambda way: max(map(abs, way))))
    return [_agreed([one for one in column if math.isfinite(one)]) for column in zip(*found, strict=True)]


def _agreed(column: Sequence[float]) -> float:
    """The mean over the seeds of a difference; drift, which has another sign from another seed, is none."""
    return _mean(column) if all(one > 0 for one in column) or all(one < 0 for one in column) else 0.0


def _noise(means: Sequence[Sequence[float]], values: Sequence[float], places: Sequence[tuple[int, int]]) -> list[float]:
    """What runs of FP32 differ by in each window, or in one beside it, and half as much again: of a few runs the spread
    is itself uncertain. Of one seed, what its batches tell."""
    if len(means) == 1:
        return [4 * math.sqrt(2 / (high - low)) * scatter(values) for low, high in places]
    spread = [
        max(finite) - min(finite) if (finite := _finite_of(column)) else 0.0 for column in zip(*means, strict=True)
    ]
    return [1.5 * max(spread[max(0, at - 1) : at + 2]) for at in range(len(spread))]


def _still(means: Sequence[Sequence[float]], apart: Sequence[float], allowed: Sequence[float]) -> bool:
    """FP32 learned, beyond what is noise, and AMP did not."""
    fell = means[0][0] - means[0][-1]
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


def _nth(run: Run, index: int) -> Curve | None:
    found = curves(run)
    return found[index] if index < len(found) else None


def _size(values: Sequence[float]) -> float:
    return _mean([abs(one) for one in values if math.isfinite(one)])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _finite_of(values: Any) -> list[float]:
    return [one for one in values if math.isfinite(one)]


def _percent(part: float, whole: float) -> str:
    share = 100 * part / (whole or 1e-300)
    return f"{share:.2g} %" if 0.01 <= share < 100 else f"{share:.0f} %" if share >= 100 else "< 0.01 %"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"

"""What FP32 and AMP have in common exactly, or but for one rounding.

AMP changes neither the learning rates nor what is trained, and the first step is made with the same weights on the same
batch. No spread excuses a difference here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from amplint.verify.curves import value
from amplint.verify.runs import Run

_SAME = 1e-4  # relative, between two learning rates
_TIMES = 2.0  # that a parameter's first gradient may differ by
_LARGE, _MUCH = 0.01, 0.1  # share of the whole gradient, below which a parameter's is rounding: in FP32, and in AMP


def differences(fp32: Sequence[Run], amp: Run, reference: Run) -> Iterator[str]:
    """What AMP does otherwise. `fp32`: all of its runs; `reference`: the one that made the same steps as AMP."""
    yield from _rates(fp32, amp)
    yield from _parts(fp32, amp, reference)


# -- learning rates -----------------------------------------------------------------------------------------------


def _rates(fp32: Sequence[Run], amp: Run) -> Iterator[str]:
    """The learning rate at each step; that of a scheduler which waits for a skipped step comes as much later. Where
    FP32's runs differ in it among themselves, it hangs on what they measured."""
    for index in sorted({step["optimizer"] for step in amp.steps}):
        courses = [_course(run, index) for run in fp32]
        if any(not _alike(courses[0], other) for other in courses[1:]):
            continue
        skips = 0
        for at, (mine, theirs) in enumerate(zip(_course(amp, index), courses[0], strict=False)):
            may = courses[0][at - skips : at + 1]
            if len(mine) == len(theirs) and not any(_near(mine, other) for other in may):
                a, b = next((a, b) for a, b in zip(mine, theirs, strict=True) if not _near([a], [b]))
                yield f"the learning rate at step {at + 1} is {a:.5g} in AMP, and {b:.5g} in FP32"
                break
            skips += _steps(amp, index)[at]["skipped"]


def _steps(run: Run, index: int) -> list[dict[str, Any]]:
    return [step for step in run.steps if step["optimizer"] == index]


def _course(run: Run, index: int) -> list[list[float]]:
    return [[value(rate) for rate in step.get("rates", ())] for step in _steps(run, index)]


def _alike(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    return all(_near(a, b) for a, b in zip(one, other, strict=False))


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    """Equal, but for rounding; a rate that is not known is any."""
    return len(one) == len(other) and all(
        not abs(a - b) > _SAME * max(abs(a), abs(b)) for a, b in zip(one, other, strict=True)
    )


# -- the first step -----------------------------------------------------------------------------------------------


def _parts(fp32: Sequence[Run], amp: Run, reference: Run) -> Iterator[str]:
    """The gradient of each parameter at the first step of its optimizer. Half rounds it, by a few percent where it is
    large; it is no more than that where a layer is detached, scaled twice, or not clipped."""
    for index in sorted({step["optimizer"] for step in amp.steps}):
        (at, mine), (there, theirs) = _first(amp, index), _first(reference, index)
        if at != there or not mine or not theirs:
            continue
        missing = [name for name in theirs if name not in mine and not name.startswith("parameter ")]
        if missing:
            yield f"{_listed(missing)} not trained in AMP"
        others = [parts for run in fp32 if (parts := _first(run, index)[1])]
        whole = math.sqrt(math.fsum(norm**2 for norm in theirs.values()))
        wrong = []
        for name in mine.keys() & theirs.keys():
            seeds = [math.log(norm) for parts in others if (norm := parts.get(name, 0.0)) > 0]
            spread = 1.5 * (max(seeds) - min(seeds)) if seeds else 0.0
            a, b = mine[name], theirs[name]
            large = b > _LARGE * whole or a > _MUCH * whole
            if large and not abs(_log(a) - _log(b)) <= max(math.log(_TIMES), spread):
                wrong.append((b, name))
        if wrong:
            _, name = max(wrong)
            more = f", and so with {len(wrong) - 1} more" if len(wrong) > 1 else ""
            yield f"the first gradient of {name} has the norm {mine[name]:.3g} in AMP, {theirs[name]:.3g} in FP32{more}"


def _first(run: Run, index: int) -> tuple[int, dict[str, float]]:
    """The first step that an optimizer made, and its gradients' norms: 0 for none."""
    for at, step in enumerate(_steps(run, index)):
        parts = step.get("parts")
        if parts is not None:
            norms = {name: 0.0 if norm is None else value(norm) for name, norm in parts.items()}
            return (at, norms) if all(map(math.isfinite, norms.values())) else (at, {})
    return -1, {}


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-300))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} is" if len(names) == 1 else f"{shown}{' and more' if len(names) > 3 else ''} are"

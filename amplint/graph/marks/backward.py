"""AMP454 and AMP455: gradients that float16 makes zero, and updates that a half weight swallows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import fx

from amplint.findings import Severity
from amplint.graph import gradients as backward
from amplint.graph.capture.captured import place_of
from amplint.graph.marks import words
from amplint.graph.marks.facts import Facts, placed
from amplint.graph.marks.mark import Mark
from amplint.graph.stats import Stats

GRADIENT, UPDATE = "AMP454", "AMP455"
UNSCALED = 0.01  # of the gradients that are not zero: without a scaler no more may vanish
LOST = 0.25  # of the nodes: a few have no gradient but noise (a bias before a normalisation)
NODE = 0.5  # of one node's gradient, under the scale in use
SWALLOWED = 0.25  # of the first updates


def gradients(facts: Facts, scale: float | None) -> Iterator[Mark]:
    """What becomes of gradients under the script's loss scale."""
    calibration = facts.calibration
    if calibration is None or not calibration.signal or facts.captured.precision.dtype != torch.float16:
        return
    found = backward.gradients(facts.captured, calibration)
    if found is None:
        return
    power = backward.DEFAULT if scale is None else round(math.log2(scale)) if scale > 0 else 0
    window = found.window
    share = found.flushed(0)
    if window is None:
        yield from _no_window(facts, found)
    elif power == 0 and scale is not None and share > UNSCALED:
        node = _worst(facts, 0)
        yield _gradient(
            "all",
            node,
            -float(window[0]),
            f"{100 * share:.1f} % of the gradients are 0 in float16: the loss is not scaled",
            f"useful loss scales are 2^{window[0]} to 2^{window[1]}",
            "use torch.amp.GradScaler, whose first scale is 65536",
            Severity.WARNING,
        )
    elif power < window[0] and scale is not None:
        yield _gradient(
            "all",
            _worst(facts, power),
            float(power - window[0]),
            f"a loss scale of {words.number(scale)} leaves {100 * found.flushed(power):.1f} % of the gradients 0",
            f"useful loss scales are 2^{window[0]} to 2^{window[1]}",
            f"start with a larger one: torch.amp.GradScaler(init_scale=2.0**{min(window[1], 16)})",
            Severity.WARNING,
        )
    elif power > window[1]:
        yield _gradient(
            "skips",
            _worst(facts, power, largest=True),
            float(window[1] - power),
            f"the scaler's first scale, 2^{power}, makes gradients inf: it skips the first "
            f"{_steps(power - window[1])}, until it has come down to 2^{window[1]}",
            f"gradients up to {words.number(found.all.absmax)}",
            f"start lower if the first steps matter: torch.amp.GradScaler(init_scale=2.0**{window[1]})",
            Severity.NOTE,
        )
    else:
        yield from _local(facts, power)


def _no_window(facts: Facts, found: backward.Gradients) -> Iterator[Mark]:
    """Told as a warning where the gradients of many nodes are lost altogether."""
    every = {node: one for node, one in _halves(facts) if one.absmax}
    if not every or found.all.infinite or found.all.nan:
        return
    high = max(one.absmax for one in every.values())
    top = math.floor(math.log2(65504.0 / high))
    lost = [node for node, one in every.items() if one.absmax * 2.0**top <= 2.0**-25]
    node = min(lost or every, key=lambda one: every[one].absmax)
    yield _gradient(
        "here",
        node,
        math.log2(every[node].absmax * 2.0**top / 2.0**-25),
        f"no loss scale holds all gradients: 2^{top}, the largest that none of them overflows with, "
        + (f"leaves nothing of {_these(len(lost))}" if lost else "makes small ones 0"),
        f"they come up to {words.number(every[node].absmax)} here, and to {words.number(high)} elsewhere",
        "train in bfloat16, or keep the part with the largest gradients in float32",
        Severity.WARNING if len(lost) > LOST * len(every) else Severity.NOTE,
    )


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"


def _these(count: int) -> str:
    return "this one" if count == 1 else f"this one and of {count - 1} other{'s' * (count > 2)}"


def _halves(facts: Facts) -> Iterator[tuple[fx.Node, Stats]]:
    """The gradients that are half, at nodes with a line."""
    for node, one in facts.calibration.gradient.items() if facts.calibration else ():
        if facts.half(node) == torch.float16 and node.op == "call_function" and not backward.is_view(node):
            yield node, one


def _local(facts: Facts, power: int) -> Iterator[Mark]:
    """Nodes that lose most of their gradient even so, where the rest of the model keeps its own."""
    calibration = facts.calibration
    for node, stats in calibration.gradient.items() if calibration else ():
        if facts.half(node) != torch.float16 or node.op != "call_function" or backward.is_view(node):
            continue
        share = stats.flushed(torch.float16, power)
        if share <= NODE or not stats.absmax:
            continue
        behind = [calibration.gradient[one] for one in node.users if calibration and one in calibration.gradient]
        if any(one.flushed(torch.float16, power) > NODE for one in behind):
            continue  # it is lost there already
        yield _gradient(
            "here",
            node,
            math.log2(max(stats.absmax, 2.0**-149) * 2.0**power / 2.0**-25),
            f"{100 * share:.0f} % of the gradient at {words.operation(node)} is 0 in float16, scaled by 2^{power}",
            f"gradients up to {words.number(stats.absmax)}",
            "compute it in float32 (autocast off, .float() on its operands), or train in bfloat16",
            Severity.NOTE,
        )


def _gradient(
    about: str, node: fx.Node, headroom: float, message: str, cause: str, remedy: str, severity: Severity
) -> Mark:
    place = place_of(placed(node))
    return Mark(GRADIENT, "calibrated", node, place, headroom, message, cause, remedy, severity, about=about)


def _worst(facts: Facts, power: int, largest: bool = False) -> fx.Node:
    """The node with the largest gradient, or the one with the largest share that is flushed."""
    calibration = facts.calibration
    assert calibration is not None
    found = {
        node: stats
        for node, stats in calibration.gradient.items()
        if facts.half(node) == torch.float16 and node.op == "call_function" and place_of(node) is not None
    } or dict(calibration.gradient)
    if largest:
        return max(found, key=lambda node: found[node].absmax)
    return max(found, key=lambda node: found[node].flushed(torch.float16, power))


def swamped(facts: Facts) -> Iterator[Mark]:
    """Half parameters that the optimizer's steps do not move."""
    found = facts.calibration.swamped if facts.calibration else None
    if found is None:
        return
    for node, (share, _) in found.parameters.items():
        dtype = facts.half(node)
        if dtype is None or share < SWALLOWED:
            continue
        name = words.dtype_name(dtype)
        held = facts.ranges.get(node)
        size = f"weights up to {words.number(held.amax)}" if held and held.amax else ""
        yield Mark(
            UPDATE,
            "calibrated",
            placed(node),
            place_of(placed(node)),
            math.log2(max(1 - share, 2.0**-10)),
            f"{100 * share:.0f} % of {found.optimizer}'s first updates leave a {name} weight as it is: they are below "
            "half of its last bit",
            f"lr {found.lr:g}, {size}".rstrip(", "),
            "keep the parameters in float32 and use autocast, or an optimizer with float32 master weights",
            Severity.WARNING,
        )

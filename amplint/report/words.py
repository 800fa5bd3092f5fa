"""One event in words: what is done to what, and the details that a reader would want to know.

A detail carries what joins it to the sentence (", scaled by scaler"), because it may hold only under some condition.
`✗` marks a state of the gradients that a step should not meet: it is what was understood, not a finding.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

from amplint.report.names import VAGUE, Names, brief
from amplint.source import events
from amplint.source.interpret.conditions import evaluate, truth
from amplint.source.interpret.roles import path_of
from amplint.source.values import Autocast, Optimizer, Region, Scaler

TOLD = (
    events.Forward,
    events.Loss,
    events.Backward,
    events.Unscale,
    events.Clip,
    events.ReadGradient,
    events.Step,
    events.Update,
    events.ZeroGradient,
    events.Create,
    events.Cast,
    events.ChangeWeights,
    events.Discard,
    events.Save,
    events.Load,
)
_INTO = ", into the gradients of {}"
_FOR = " for {}"


class Detail(NamedTuple):
    """What a sentence goes on to say, with a name in its `{}`: details that differ in the name only are told together.
    `anyway`: no matter that it was not met always."""

    text: str
    name: str = ""
    anyway: bool = False


def as_detail(detail: str | Detail) -> Detail:
    return detail if isinstance(detail, Detail) else Detail(detail)


Telling = tuple[str, list[str], Sequence[str | Detail]]


def say(event: events.Event, names: Names, several: bool) -> Telling:
    """The sentence (with `{}` for its subjects), the subjects, and the details; `several`: optimizers in play."""
    match event:
        case events.Forward():
            details = _under(names, event)
            if event.stale is not None:
                details.append(f", with weights cast before line {_row(event.stale)} changed them ✗")
            return "forward {}", [_called(event) or names.name(event.model)], details
        case events.Loss():
            return "loss {}", [event.name.removesuffix("_loss").removesuffix("_nd")], _under(names, event)
        case events.Backward():
            return _backward(names, event, several)
        case events.Unscale():
            details = [f" by {names.name(event.scaler)}"]
            if event.state == "unscaled":
                details.append(", for the second time ✗")
            if event.before.kind == "none":
                details.append(", of which there are none ✗")
            return "unscale gradients of {}", [names.name(event.optimizer)], details
        case events.Clip() | events.ReadGradient():
            verb = "clip" if isinstance(event, events.Clip) else "read"
            of = [one for one in event.of if isinstance(one, Optimizer)] or event.of  # the parameters of its groups
            subjects = sorted(map(names.name, of)) or [names.name(one) for one, _ in event.touched]
            details = [f" ({event.how})"]
            if any(_scaled(before, event) for _, before in event.touched):
                details.append(", still scaled ✗")
            return f"{verb} gradients of {{}}", subjects, details
        case events.Step():
            return _step(names, event)
        case events.Update():
            return "update {}", [names.name(event.scaler)], []
        case events.ZeroGradient():
            return _zero(names, event)
        case events.Create():
            return _create(names, event)
        case events.Cast():
            return f"cast {{}} to {event.dtype}", [names.name(event.model)], []
        case events.ChangeWeights():
            return f"change weights of {{}} ({event.how})", sorted(map(names.name, event.of)), [_inside(names, event)]
        case events.Discard(value=Autocast() as autocast):
            region = Region(autocast, event.node, 0)
            return "make {}, and never enter it ✗", [names.region(region)], []
        case events.Discard():
            return "scale a loss, and drop the result ✗", [], []
        case events.Save():
            return _save(names, event)
        case events.Load():
            name = names.name(event.target)
            return "" if name == "something" else "load {}", [name], []
    return "", [], []


def _under(names: Names, event: events.Event) -> list[str]:
    region = event.region
    under = [] if region is None or region.assumed else [f" under {names.region(region)}"]
    return under if event.grad else [*under, ", without gradients"]


def _inside(names: Names, event: events.Event) -> str:
    region = event.region
    return "" if region is None or region.assumed else f", inside {names.region(region)}"


def _called(event: events.Forward) -> str:
    node = event.node
    if isinstance(node, ast.Call):
        text = (path_of(node.func) or "").removesuffix(".forward")
        if text and isinstance(node.func, ast.Attribute) == ("." in text):
            return text
    return ""


def _backward(names: Names, event: events.Backward, several: bool) -> Telling:
    details: list[str | Detail] = []
    if event.managed:
        details.append(", its scaling left to the library")
    if event.scaler is not None:
        details.append(f", scaled by {names.name(event.scaler)}")
    details.append(_inside(names, event))
    kind = "managed" if event.managed else "plain" if event.scaler is None else "scaled"
    of = " of {}" if several else ""
    for optimizer, before in event.touched:
        if before.stepped or before.kind in ("none", "entry", "unknown", "managed"):
            text = ""
        elif before.kind != kind or before.stale or before.scaler != event.scaler:
            was = "unscaled" if before.kind in ("plain", "unscaled") else "scaled differently"
            text = f", adding to gradients{of} that are {was} ✗"
        else:
            text = f", adding to the gradients{of}"
        name = names.name(optimizer)
        if text:
            details.append(Detail(text, name))
        elif several:
            details.append(Detail(_INTO, name, anyway=True))
    name = _loss_name(event.node)
    return "backward of {}" if name else "backward", [name], details


def _step(names: Names, event: events.Step) -> Telling:
    details = [f" through {names.name(event.scaler)}"] if event.scaler is not None else []
    before = event.before
    if event.closure:
        details.append(" with a closure")
    if event.scaler is None and _scaled(before, event):
        details.append(", with gradients that are still scaled ✗")
    if event.state == "stepped":
        details.append(", for the second time without an update ✗")
    if before.kind == "none" and not event.closure:
        details.append(", without gradients ✗")
    if before.kind == "unknown":
        details.append(", with gradients in an unknown state")
    details.append(_inside(names, event))
    return "step {}", [names.name(event.optimizer)], details


def _zero(names: Names, event: events.ZeroGradient) -> Telling:
    receiver = event.node.func.value if _is_method(event.node) else None  # type: ignore[attr-defined]
    name = path_of(receiver) if receiver is not None else None
    touched = [names.name(one) for one, _ in event.touched]
    if name in names._names.values() or not touched:
        touched = [name or "some model"]
    details = []
    if any(before.kind in ("plain", "scaled", "unscaled") and not before.stepped for _, before in event.touched):
        details.append(", dropping what no step has used")
    return "zero gradients of {}", touched, details


def _create(names: Names, event: events.Create) -> Telling:
    target = _target(event)
    match event.value:
        case Optimizer() as optimizer:
            kind = optimizer.name.rpartition(".")[2] or "optimizer"
            made = f"{target} ({kind})" if target else kind
            return (
                "make {}",
                [made],
                [
                    Detail(_FOR, name, anyway=True)
                    for name in sorted(map(names.name, optimizer.of))
                    if not VAGUE.search(name)
                ],
            )
        case Scaler() as scaler:
            gate = names._gate(scaler.enabled, scaler.node)
            gate = f", {gate.replace('if ', 'enabled if ')}" if gate else ""
            return "make {}", [f"{target} (gradient scaler)" if target else "a gradient scaler"], [gate]
    return "", [], []


def _save(names: Names, event: events.Save) -> Telling:
    held = [names.name(part) for part in event.parts]
    rest = [] if event.complete or event.registers or not held else [", and more"]
    return "save {}" if held else "", held, rest


def _scaled(before: events.Gradients, event: events.Event) -> bool:
    """Whether gradients are scaled where an event meets them: a scaler may turn out to be off."""
    scaler = before.scaler
    off = isinstance(scaler, Scaler) and evaluate(truth(scaler.enabled), event.facts) is False
    return before.kind in ("scaled", "mixed") and not off


def _is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


def _row(event: events.Event) -> int:
    return getattr(event.node, "lineno", 0)


def _target(event: events.Create) -> str | None:
    """The variable that what is made here is assigned to."""
    parent = event.module.parents.get(event.node)
    return path_of(parent.targets[0]) if isinstance(parent, ast.Assign) else None


def _loss_name(node: ast.AST) -> str:
    """`loss` of `scaler.scale(loss).backward()`, of `loss.backward()` and of `scaler(loss, …)`."""
    if not isinstance(node, ast.Call):
        return ""
    inner: ast.AST | None = node.func
    if isinstance(inner, ast.Attribute) and inner.attr == "backward":
        inner = node.args[0] if node.args else inner.value
    elif node.args:
        inner = node.args[0]
    if isinstance(inner, ast.Call) and _is_method(inner) and inner.args:
        inner = inner.args[0]
    return brief(path_of(inner) or "") if inner is not None else ""

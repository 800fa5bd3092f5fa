"""One event in words: what is done to what, and the details that a reader would want to know.

A detail carries what joins it to the sentence (", scaled by scaler"), because it may hold only under some condition.
`✗` marks a state of the gradients that a step should not meet: it is what was understood, not a finding.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence

from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.conditions import evaluate, truth
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.roles import path_of
from amplint.source.values import (
    TRUE,
    Autocast,
    Choice,
    Const,
    Device,
    Formula,
    Gradient,
    Instance,
    Lib,
    Model,
    Object,
    Optimizer,
    Owners,
    Parameter,
    Parameters,
    Question,
    Region,
    Scaler,
    Sym,
    Test,
    Value,
    options,
)

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
_VAGUE = re.compile(r"\bsomething\b|\ba part of\b|\bthe\b")
MOST_TEXT = 60  # of a condition or a name
_INTO = ", into the gradients of {}"
Detail = str | tuple[str, list[str]]  # with names: those of all that was met are told together
Telling = tuple[str, list[str], Sequence[Detail]]


def brief(text: str) -> str:
    """Source text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class Words:
    """The words for the events of one reading: it knows what things are called."""

    def __init__(self, machine: Machine, log: Iterable[events.Event]):
        self._texts = machine.texts
        self._names: dict[Value, str] = {}
        made = machine.names
        used: dict[Value, str] = {}
        for event in log:
            for value, node in _uses(event):
                text = path_of(node) if node is not None else None
                if text:
                    used.setdefault(value, text)
        texts = list(used.values())
        for value in {**made, **used}:
            name = used.get(value, "")
            if made.get(value) and (not name or texts.count(name) > 1):
                name = made[value]
            if name:
                self._names[value] = name

    # -- names ----------------------------------------------------------------------------------------------------

    def name(self, value: Value) -> str:
        """What the source calls a thing."""
        known = self._names.get(value)
        if known:
            return known
        match value:
            case Optimizer(site=Value() as site) | Scaler(site=Value() as site):
                return self.name(site)
            case Optimizer():
                return f"the {value.name.rpartition('.')[2] or 'optimizer'}"
            case Scaler():
                return "a scaler"
            case Sym(kind="argument" | "name", parts=(_, str() as name)):
                return name
            case Sym(kind="attr", parts=(Value() as owner, str() as name)):
                inner = self.name(owner)
                return f"self.{name}" if isinstance(owner, Instance) else f"{inner}.{name}" if inner else name
            case Sym(kind="item", parts=(Value() as owner, Const(value=index))):
                return f"{self.name(owner)}[{index!r}]"
            case Sym(kind="item", parts=(Value() as owner, *_)):
                return f"a part of {self.name(owner)}"
            case Sym(kind="copy", parts=(_, Value() as inner)):
                return f"a copy of {self.name(inner)}"
            case Sym(kind="made", parts=(str() as name, *_)):
                return f"the {name.rpartition('.')[2]}"
            case Instance():
                return f"the {value.cls.node.name}"
            case Model() | Object():
                return f"the {value.name.rpartition('.')[2]}"
            case Parameters() | Parameter() | Gradient():
                return self.owners(value.of)
            case Device(type=str() as kind, text=text):
                return kind or self.name(text)
            case Lib():
                return value.name.removeprefix("builtins.").removeprefix("torch.")
            case Const():
                return repr(value.value)
            case Test(formula=formula):
                return self.condition(formula) or "a condition"
            case Choice():
                yes, no = self.name(value.yes), self.name(value.no)
                return yes if yes == no else f"{yes} or {no}"
        return "something"

    def owners(self, of: Owners) -> str:
        return listed(sorted({self.name(model) for model in of})) or "some model"

    def condition(self, formula: Formula) -> str:
        """What a condition asks, by the names of things, or else as the source writes it; empty where nothing says
        it."""
        if isinstance(formula, bool):
            return str(formula)
        text = ""
        match formula:
            case Question(kind="not", parts=(inner,)):
                text = self.condition(inner)
                text = f"not {text}" if _is_path(text) else f"not ({text})" if text else ""
            case Question(kind="truth" | "given", parts=(Value() as subject,)):
                text = self.name(subject)
            case Question(kind="none", parts=(Value() as subject,)):
                text = f"{self.name(subject)} is None"
            case Question(kind="eq", parts=(Value() as subject, Value() as other)):
                text = f"{self.name(subject)} == {self.name(other)}"
        if not text or _VAGUE.search(text):
            text = self._texts.get(formula, "")
        return brief(text)

    def region(self, region: Region) -> str:
        """`autocast(cuda, float16)`."""
        return self.autocast(region.autocast, tensors.region_dtype(region))

    def autocast(self, autocast: Autocast, dtype: str) -> str:
        device = tensors.device_type(autocast.device)
        if not device and autocast.device is not None:
            device = listed([self.name(side) for side in options(autocast.device)]).replace(" and ", " or ")
            device = "its device" if _VAGUE.search(device) else device
        if isinstance(autocast.dtype, Choice) or (dtype == "low" and isinstance(autocast.dtype, Sym)):
            name = self.name(autocast.dtype)
            dtype = dtype if _VAGUE.search(name) else name
        parts = [part for part in (device, "half" if dtype == "low" else dtype) if part]
        if autocast.enabled != TRUE:
            formula = truth(autocast.enabled)
            text = self.condition(formula)
            parts.append("off" if formula is False else f"if {text}" if text and formula is not True else "")
        return f"autocast({', '.join(part for part in parts if part)})"

    # -- events ---------------------------------------------------------------------------------------------------

    def tell(self, event: events.Event, several: bool) -> Telling:
        """The sentence (with `{}` for its subjects), the subjects, and the details; `several`: optimizers in play."""
        match event:
            case events.Forward():
                details = self._under(event)
                if event.stale is not None:
                    details.append(f", with weights cast before line {_row(event.stale)} changed them ✗")
                return "forward {}", [self._called(event) or self.name(event.model)], details
            case events.Loss():
                return "loss {}", [event.name.removesuffix("_loss").removesuffix("_nd")], self._under(event)
            case events.Backward():
                return self._backward(event, several)
            case events.Unscale():
                details = [f" by {self.name(event.scaler)}"]
                if event.state == "unscaled":
                    details.append(", for the second time ✗")
                if event.before.kind == "none":
                    details.append(", of which there are none ✗")
                return "unscale gradients of {}", [self.name(event.optimizer)], details
            case events.Clip() | events.ReadGradient():
                verb = "clip" if isinstance(event, events.Clip) else "read"
                subjects = sorted(self.name(model) for model in event.of) or [
                    self.name(one) for one, _ in event.touched
                ]
                details = [f" ({event.how})"]
                if any(_scaled(before, event) for _, before in event.touched):
                    details.append(", still scaled ✗")
                return f"{verb} gradients of {{}}", subjects, details
            case events.Step():
                return self._step(event)
            case events.Update():
                return "update {}", [self.name(event.scaler)], []
            case events.ZeroGradient():
                return self._zero(event)
            case events.Create():
                return self._create(event)
            case events.Cast():
                return f"cast {{}} to {event.dtype}", [self.name(event.model)], []
            case events.ChangeWeights():
                return f"change weights of {{}} ({event.how})", sorted(map(self.name, event.of)), [self._inside(event)]
            case events.Discard(value=Autocast() as autocast):
                region = Region(autocast, event.node, 0)
                return "make {}, and never enter it ✗", [self.region(region)], []
            case events.Discard():
                return "scale a loss, and drop the result ✗", [], []
            case events.Save():
                return self._save(event)
            case events.Load():
                return "load {}", [self.name(event.target)], []
        return "", [], []

    def _under(self, event: events.Event) -> list[str]:
        region = event.region
        under = [] if region is None or region.assumed else [f" under {self.region(region)}"]
        return under if event.grad else [*under, ", without gradients"]

    def _inside(self, event: events.Event) -> str:
        region = event.region
        return "" if region is None or region.assumed else f", inside {self.region(region)}"

    def _called(self, event: events.Forward) -> str:
        node = event.node
        if isinstance(node, ast.Call):
            text = (path_of(node.func) or "").removesuffix(".forward")
            if text and isinstance(node.func, ast.Attribute) == ("." in text):
                return text
        return ""

    def _backward(self, event: events.Backward, several: bool) -> Telling:
        details: list[Detail] = []
        if event.managed:
            details.append(", scaled and unscaled by the library")
        if event.scaler is not None:
            details.append(f", scaled by {self.name(event.scaler)}")
        details.append(self._inside(event))
        kind = "managed" if event.managed else "plain" if event.scaler is None else "scaled"
        for optimizer, before in event.touched:
            if before.stepped or before.kind in ("none", "entry", "unknown", "managed"):
                text = _INTO if several else ""
            elif before.kind != kind or before.stale or before.scaler != event.scaler:
                was = "unscaled" if before.kind in ("plain", "unscaled") else "scaled differently"
                text = f"adding to gradients{{}} that are {was} ✗"
            else:
                text = "adding to the gradients{}"
            name = self.name(optimizer)
            if text == _INTO:
                details.append((_INTO, [name]))
            elif text:
                details.append(f", {text.format(f' of {name}' if several else '')}")
        name = _loss_name(event.node)
        return "backward of {}" if name else "backward", [name], details

    def _step(self, event: events.Step) -> Telling:
        details = [f" through {self.name(event.scaler)}"] if event.scaler is not None else []
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
            details.append(", with gradients in a state that amplint cannot tell")
        details.append(self._inside(event))
        return "step {}", [self.name(event.optimizer)], details

    def _zero(self, event: events.ZeroGradient) -> Telling:
        receiver = event.node.func.value if _is_method(event.node) else None  # type: ignore[attr-defined]
        name = path_of(receiver) if receiver is not None else None
        touched = [self.name(one) for one, _ in event.touched]
        if name in self._names.values() or not touched:
            touched = [name or "some model"]
        details = []
        if any(before.kind in ("plain", "scaled", "unscaled") and not before.stepped for _, before in event.touched):
            details.append(", dropping what no step has used")
        return "zero gradients of {}", touched, details

    def _create(self, event: events.Create) -> Telling:
        target = _target(event)
        match event.value:
            case Optimizer() as optimizer:
                kind = optimizer.name.rpartition(".")[2] or "optimizer"
                made = f"{target} ({kind})" if target else kind
                return "make {}", [made], [f" for {self.owners(optimizer.of)}" if optimizer.of else ""]
            case Scaler() as scaler:
                formula = truth(scaler.enabled)
                text = self.condition(formula)
                gate = ", off" if formula is False else f", enabled if {text}" if text and formula is not True else ""
                return "make {}", [f"{target} (gradient scaler)" if target else "a gradient scaler"], [gate]
        return "", [], []

    def _save(self, event: events.Save) -> Telling:
        names = [self.name(part) for part in event.parts]
        rest = [] if event.complete or event.registers or not names else [", and more"]
        return "save {}" if names else "", names, rest


def _scaled(before: events.Gradients, event: events.Event) -> bool:
    """Whether gradients are scaled where an event meets them: a scaler may turn out to be off."""
    scaler = before.scaler
    off = isinstance(scaler, Scaler) and evaluate(truth(scaler.enabled), event.facts) is False
    return before.kind in ("scaled", "mixed") and not off


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


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


def _uses(event: events.Event) -> list[tuple[Value, ast.AST | None]]:
    """The things that an event is about, with the expressions that stand for them in it."""
    node = event.node
    if not isinstance(node, ast.Call):
        return []
    receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
    first = node.args[0] if node.args else None
    match event:
        case events.Forward():
            return [(event.model, node.func)]
        case events.Step(scaler=Value() as scaler) if isinstance(node.func, ast.Attribute):
            return [(scaler, receiver), (event.optimizer, first)]
        case events.Step(scaler=Scaler(site=Object()) as scaler):  # a scaler that is called
            return [(scaler, node.func), (event.optimizer, node.args[1] if len(node.args) > 1 else None)]
        case events.Step() if not node.args:
            return [(event.optimizer, receiver)]
        case events.Unscale():
            return [(event.scaler, receiver), (event.optimizer, first)]
        case events.Update():
            return [(event.scaler, receiver)]
    return []

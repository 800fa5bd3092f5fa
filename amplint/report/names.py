"""What the source calls things, and how its conditions read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.conditions import truth
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.roles import path_of
from amplint.source.symbols import options
from amplint.source.values import (
    NONE,
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
)

MOST_TEXT = 60  # of a condition or a name
VAGUE = re.compile(r"\bsomething\b|\ba part of\b|\bthe\b")


def brief(text: str) -> str:
    """Source text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class Names:
    """What the things and conditions of one reading are called."""

    def __init__(self, machine: Machine, log: Iterable[events.Event]):
        self._texts = machine.texts
        self._names: dict[Value, str] = {}
        self._gates: dict[ast.AST | None, str] = {}
        made = machine.names
        used: dict[Value, str] = {}
        for event in log:
            for value, node in _uses(event):
                text = path_of(node) if node is not None else None
                if text and (value not in used or used[value].startswith(text + ".")):
                    used[value] = text
            if event.region is not None:
                self.region(event.region)  # learn the gates
        texts = list(used.values())
        for value in {**made, **used}:
            name = used.get(value, "")
            if made.get(value) and (not name or texts.count(name) > 1):
                name = made[value]
            if name:
                self._names[value] = name

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
            case Sym(kind="attr", parts=(Const(), _)):
                return "something"
            case Sym(kind="attr", parts=(Value() as owner, str() as name)):
                inner = self.name(owner)
                return f"self.{name}" if isinstance(owner, Instance) else f"{inner}.{name}" if inner else name
            case Sym(kind="item", parts=(Value() as owner, Const(value=index))):
                return f"{self.name(owner)}[{index!r}]"
            case Sym(kind="item", parts=(Value() as owner, *_)):
                return f"a part of {self.name(owner)}"
            case Sym(kind="choice", parts=parts):
                return " or ".join(dict.fromkeys(self.name(part) for part in parts if isinstance(part, Value)))
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
                sides = [self.name(side) for side in options(value) if side != NONE]
                return " or ".join(dict.fromkeys(sides))
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
            case Question(kind="eq", parts=(Value() as subject, Const(value=("dtype", str() as dtype)))):
                text = f"{self.name(subject)} == torch.{dtype}"
            case Question(kind="eq", parts=(Value() as subject, Value() as other)):
                text = f"{self.name(subject)} == {self.name(other)}"
        if not text or VAGUE.search(text):
            text = self._texts.get(formula, "")
        return brief(text)

    def region(self, region: Region) -> str:
        """`autocast(cuda, float16)`."""
        return self.autocast(region.autocast, tensors.region_dtype(region))

    def autocast(self, autocast: Autocast, dtype: str) -> str:
        device = tensors.device_type(autocast.device)
        if not device and autocast.device is not None:
            device = listed([self.name(side) for side in options(autocast.device)]).replace(" and ", " or ")
            device = "its device" if VAGUE.search(device) or "*" in device else device
        if isinstance(autocast.dtype, Choice) or (dtype == "low" and isinstance(autocast.dtype, Sym)):
            name = self.name(autocast.dtype)
            dtype = dtype if VAGUE.search(name) else name
        parts = [part for part in (device, "half" if dtype == "low" else dtype) if part]
        return f"autocast({', '.join(part for part in (*parts, self._gate(autocast.enabled, autocast.node)) if part)})"

    def _gate(self, enabled: Value, node: ast.AST | None) -> str:
        """`if use_amp`, as the source gives it, although one world may know the answer; "off" where all do."""
        given = _argument(node, "enabled")
        if not isinstance(enabled, Const) and given is not None:
            self._gates[node] = f"if {brief(ast.unparse(given))}"
        formula = truth(enabled)
        text = self.condition(formula)
        own = "off" if formula is False else "" if formula is True or not text else f"if {text}"
        return self._gates.get(node, own)


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _argument(node: ast.AST | None, name: str) -> ast.expr | None:
    """What a call passes by this name, if that is no constant."""
    keywords = node.keywords if isinstance(node, ast.Call) else []
    given = next((keyword.value for keyword in keywords if keyword.arg == name), None)
    return None if isinstance(given, ast.Constant) else given


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

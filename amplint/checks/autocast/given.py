"""Whether autocast is given a torch.device for its device type: by the value, a default, or what is asked of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, text
from amplint.source.interpret import classes
from amplint.source.interpret.world import World
from amplint.source.module import Module
from amplint.source.tree import defaults, stored_names
from amplint.source.values import Device, Instance, Model, Sym, Value
from amplint.source.walk import walk

_TYPES = {"cuda", "cpu", "mps", "xpu", "hpu", "npu"}
_KNOW_THEIR_DEVICE = re.compile(r"(torch\.nn|(pytorch_)?lightning|deepspeed)\..*(Module|Engine)$")  # by a torch.device


def is_device(script: Script, value: Value) -> bool:
    """Whether a value is a torch.device object."""
    match value:
        case Device():
            return True
        case Sym(kind="attr", parts=(Instance() as owner, "device")):
            machine = script.reading.machine
            frame = owner.cls.frame
            known = classes.is_module(machine, owner.cls, World(), frame) or any(
                _KNOW_THEIR_DEVICE.match(base) for base in classes.library_bases(machine, owner.cls, World(), frame)
            )
            return known and not _sets_field(owner.cls.node, "device")
        case Sym(kind="attr", parts=(Model(name=maker), "device")):
            return maker.startswith("transformers.")  # its models say on which torch.device they are
        case Sym(kind="attr", parts=(Sym(kind="attr") as held, "device")):
            return _from_a_loader(held)
    return False


def _from_a_loader(held: Sym) -> bool:
    """Whether something is part of what a loop, or next(), takes out of a loader: a tensor, if it has a device, unless
    it is called a configuration."""
    while held.kind == "attr" and isinstance(held.parts[0], Sym):
        if re.search(r"conf|cfg|arg|opt", str(held.parts[1])):
            return False
        held = held.parts[0]
    return held.kind == "element"


def of_a_device(sides: list[Value]) -> bool:
    """Whether it is asked of a tensor's or a module's device for an attribute."""
    for side in sides:
        match side:
            case Sym(kind="attr", parts=(Device() | Sym(kind="attr", parts=(_, "device")), _)):
                continue
        return False
    return bool(sides)


def is_by_default(module: Module, argument: ast.expr) -> bool:
    """Whether what is passed is a torch.device by default: an argument of the function, or a field of a class of the
    file that an argument is said to be of."""
    function = module.function(argument)
    match argument:
        case ast.Name(id=name) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [value for one, value in defaults(function.args) if one == name]
            return name not in stored_names(function) and any(_makes_device(module, value) for value in given)
        case ast.Attribute(value=owner, attr=field):
            for cls in _annotated(module, owner):
                for node in cls.body:
                    match node:
                        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name == field:
                            return _makes_device(module, value)
    return False


def _makes_device(module: Module, value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and "torch.device" in module.dotted(value.func)


def _annotated(module: Module, owner: ast.expr) -> Iterator[ast.ClassDef]:
    """The class of the file that an argument is said to be of: `params: Params`, also where `self.params` keeps it."""
    names: dict[ast.AST | None, str] = {}
    match owner:
        case ast.Name(id=name):
            names[module.function(owner)] = name
        case ast.Attribute(value=ast.Name(id="self")):
            shown = text(module, owner)
            for node in module.nodes(ast.Assign):
                if isinstance(node.value, ast.Name) and any(text(module, one) == shown for one in node.targets):
                    names[module.function(node)] = node.value.id
    for function, name in names.items():
        for one in walk(function.args) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) else ():
            match one:
                case ast.arg(arg=arg, annotation=ast.Name(id=said)) if arg == name:
                    yield from (cls for cls in module.nodes(ast.ClassDef) if cls.name == said)


def has_a_type(module: Module, argument: ast.expr) -> bool:
    """Whether the function asks for the type of what it passes as device_type (`self.device.type == "cuda"`): that is a
    device, as no string has one."""
    function, shown = module.function(argument), text(module, argument, 200)
    if function is None or not isinstance(argument, ast.Name | ast.Attribute):
        return False
    asked = False
    for node in walk(function):
        match node:
            case ast.Compare(
                left=ast.Attribute(attr="type", value=of), comparators=[ast.Constant(value=str() as kind)]
            ):
                asked |= kind in _TYPES and text(module, of, 200) == shown
            case ast.Name() | ast.Attribute() if isinstance(node.ctx, ast.Store) and text(module, node, 200) == shown:
                return False  # it may be another thing where it is passed
            case ast.Call(func=ast.Name(id="isinstance" | "hasattr"), args=[one, *_]):
                if text(module, one, 200) == shown:
                    return False
    return asked


def _sets_field(cls: ast.ClassDef, field: str) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == field and isinstance(node.ctx, ast.Store) for node in walk(cls)
    )

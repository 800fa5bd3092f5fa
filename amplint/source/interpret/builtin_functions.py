"""Built-in functions: those that decide what is called, looped over or asked."""

from __future__ import annotations

import ast

from amplint.source.interpret import attributes, calls, classes, conditions, containers, operations, tensors
from amplint.source.interpret.frames import NEVER, Arguments, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import ask, fresh, sym
from amplint.source.values import (
    GIVEN,
    NONE,
    TRUE,
    Choice,
    Class,
    Const,
    Instance,
    Items,
    Lib,
    Many,
    Mapping,
    Parameters,
    Sym,
    Tensor,
    Test,
    Value,
)

_OF_A_SCALER = frozenset(("scale", "unscale_", "step", "update"))


def call(m: Machine, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    args = given.args
    first = args[0] if args else None
    match name:
        case "getattr" if len(args) >= 2:
            return _getattr(m, given, node, world, frame)
        case "setattr" if len(args) == 3 and isinstance(args[1], Const) and isinstance(args[1].value, str):
            target = ast.copy_location(ast.Attribute(ast.Constant(None), args[1].value, ast.Store()), node)
            return [(NONE, after) for after in attributes.set_attribute(m, args[0], target, args[2], world, frame)]
        case "list" | "tuple" | "set" | "sorted" | "reversed" | "iter" if first is not None:
            if isinstance(first, Items):
                return [(Items(first.items, "list"), world)]
            known = isinstance(first, Many | Parameters | Mapping)
            return [(first if known else Many(containers.element(first)), world)]
        case "next" if first is not None:
            return [(containers.element(first), world)]
        case "enumerate" if first is not None:
            listed = containers.elements(first)
            if listed is not None:
                pairs = tuple(Items((Const(i), value)) for i, value in enumerate(listed))
                return [(Items(pairs, "list"), world)]
            return [(Many(Items((fresh("element"), containers.element(first)))), world)]
        case "zip" if args:
            return [(_zip(args), world)]
        case "map" if len(args) == 2 and first is not None:
            listed = containers.elements(args[1])
            one = listed[0] if listed else containers.element(args[1])
            results = calls.call(m, first, Arguments((one,)), node, world, frame)
            return [(Many(value), after) for value, after in results]
        case "filter" if len(args) == 2:
            left = args[1]
            return [(left if isinstance(left, Parameters | Items | Many) else Many(containers.element(left)), world)]
        case "dict":
            named = tuple((Const(key), value) for key, value in given.kwargs.items())
            base = first.items if isinstance(first, Mapping) else ()
            is_open = given.open or (bool(args) and not isinstance(first, Mapping))
            return [(Mapping((*base, *named), is_open, node if isinstance(node, ast.Call) else None), world)]
        case "bool" if first is not None:
            formula = conditions.truth(first)
            return [(Const(formula) if isinstance(formula, bool) else Test(formula), world)]
        case "float" if isinstance(first, Const) and isinstance(first.value, str):
            try:
                return [(Const(float(first.value)), world)]
            except ValueError:
                return [(fresh("call"), world)]
        case "float" | "int" | "abs" if isinstance(first, Const) and isinstance(first.value, int | float):
            try:
                number = float(first.value) if name == "float" else int(first.value)
                return [(Const(abs(first.value) if name == "abs" else number), world)]
            except (OverflowError, ValueError):
                return [(fresh("call"), world)]
        case "int" if isinstance(first, Sym) and len(args) == 1:
            return [(sym("call", name, conditions.key(first)), world)]
        case "sum" if first is not None:
            return [(_sum(m, args, node, world, frame), world)]
        case "exit" | "quit":
            return [(Const(NEVER), world)]
        case "isinstance" if len(args) == 2:
            return [(_isinstance(args[0], args[1]), world)]
        case "hasattr" if len(args) == 2 and classes.surely_has(args[0], args[1], world, frame):
            return [(TRUE, world)]
        case "callable" if isinstance(first, Choice) and first.no == NONE:  # getattr(x, "step", None)
            return [(Test(first.formula), world)]
        case "callable" | "hasattr" | "issubclass":
            return [(Test(ask("truth", sym("call", name, *args))), world)]
        case "range":
            return [(Many(fresh("element")), world)]
        case "str" if isinstance(first, Sym) and first.kind == "call" and first.parts[0] == "str":
            return [(first, world)]  # what is text already
        case "len" | "min" | "max" | "round" | "id" | "type" | "str" | "any" | "all" | "repr":
            tensor = tensors.opaque(args, world, node) if name in ("min", "max") else None
            return [(tensor or sym("call", name, *map(conditions.key, args)), world)]
        case "print":
            return [(NONE, world)]
        case "open" | "input" | "eval" | "vars" | "super":
            return [(fresh("call"), world)]
    return calls.unknown(m, Lib(f"builtins.{name}"), given, node, world, frame)


def _getattr(m: Machine, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    owner, name = given.args[0], given.args[1]
    if not (isinstance(name, Const) and isinstance(name.value, str)):
        return [(sym("item", owner, name), world)]
    target = ast.copy_location(ast.Attribute(ast.Constant(None), name.value, ast.Load()), node)
    results = attributes.attribute(m, owner, name.value, target, world, frame)
    if len(given.args) == 3 and len(results) == 1 and isinstance(results[0][0], Sym):
        asked = Const("scale") if name.value in _OF_A_SCALER else name  # who has one of these has them all
        return [(conditions.choice(ask("truth", sym("has", owner, asked)), results[0][0], given.args[2]), world)]
    return results


def _zip(args: tuple[Value, ...]) -> Value:
    known = [containers.elements(value) for value in args]
    lengths = {len(items) for items in known if items is not None}
    if all(items is not None for items in known) and len(lengths) == 1:
        rows = zip(*(items for items in known if items is not None), strict=True)
        return Items(tuple(Items(row) for row in rows), "list")
    return Many(Items(tuple(containers.element(value) for value in args)))


def _sum(m: Machine, args: tuple[Value, ...], node: ast.AST, world: World, frame: Frame) -> Value:
    parts = containers.elements(args[0])
    values = tuple(parts) if parts is not None else (containers.element(args[0]),)
    if any(one.trust != GIVEN or one.made != "argument" for one in tensors.tensors_in(values)):
        return operations.operation(m, "add", values, {}, node, world, frame)
    return sym("call", "sum", *map(conditions.key, args))


def _isinstance(value: Value, cls: Value) -> Value:
    if isinstance(value, Const) and value.value is None:
        return Const(False)
    if isinstance(value, Instance) and isinstance(cls, Class):
        known = {value.cls, *value.cls.bases}
        if cls in known:
            return Const(True)
    if isinstance(value, Items | Mapping) and isinstance(cls, Lib) and cls.name.startswith("builtins."):
        kinds = {
            "builtins.dict": isinstance(value, Mapping),
            "builtins.list": isinstance(value, Items) and value.kind == "list",
        }
        if cls.name in kinds:
            return Const(kinds[cls.name])
    if isinstance(value, Tensor) and isinstance(cls, Lib) and value.dtype:
        return Const(cls.name == "torch.Tensor")
    return Test(ask("isinstance", conditions.key(value), cls))


def is_tensor(value: Value) -> Value:
    """`torch.is_tensor(x)`: what a forward is given was taken for a tensor, and who asks expects others, too."""
    if isinstance(value, Tensor) and value.trust == GIVEN and value.made == "argument":
        return Test(ask("is tensor", conditions.key(value)))
    return _isinstance(value, Lib("torch.Tensor"))

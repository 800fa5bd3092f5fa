"""Fields that `__init__` only declares (`self.scaler = None`): another method makes what they hold, before a step runs.

What nothing in sight calls is judged as if those methods had run, once, in the order in which they stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

from amplint.source.events import Gradients
from amplint.source.interpret import functions, protocol
from amplint.source.interpret.frames import Arguments
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import PROTOCOL, World, join_all
from amplint.source.module import Module
from amplint.source.symbols import sym
from amplint.source.values import NONE, Class, Const, Function, Instance, Items, Value
from amplint.source.walk import walk

Method = ast.FunctionDef | ast.AsyncFunctionDef
_GUARDED = re.compile(r"caler|clip_?grad|_clip")
_MOST = 4  # methods that set an object up


def set_up(m: Machine, instance: Instance, world: World) -> World:
    """The world in which the methods have run that make the optimizers and scalers which `__init__` declares."""
    makers: list[Function] = []
    for cls in _classes(instance.cls):
        known = {one.name for one in makers}
        for node in cls.node.body:
            if not isinstance(node, Method) or node.name in known or node in m.entered or node.name == "__init__":
                continue
            function = world.get(cls, node.name)
            if isinstance(function, Function) and function.node is node and _makes(m, function, instance, world):
                makers.append(function)
    if not 0 < len(makers) <= _MOST:
        return world
    rivals = [name for one in makers for name in {field for field, _ in fields_set(one.node)}]
    for function in makers:
        bound = Function(function.node, function.frame, function.defaults, (), instance, function.cls or instance.cls)
        done = functions.call_function(m, bound, Arguments(open=True), bound.node, world.copy(), None, entry=True)
        world = _one(after for _, after in done) or world
    for name in {name for name in rivals if rivals.count(name) > 1}:  # which of them ran is not known
        world.set(instance, name, sym("attr", instance, name))
    return world


def _classes(cls: Class) -> list[Class]:
    found = [cls]
    for one in found:
        found += [base for base in one.bases if isinstance(base, Class) and base not in found]
    return found


def _makes(m: Machine, function: Function, instance: Instance, world: World) -> bool:
    """Whether a method sets a field that is None until then, and that the class uses as an optimizer or a scaler; a
    method that trains sets what it needs by itself."""
    inner = function.node
    assert isinstance(inner, Method)
    if _trains(inner) or function.decorators:
        return False
    for name, value in fields_set(inner):
        if world.get(instance, name) != NONE or (isinstance(value, ast.Constant) and value.value is None):
            continue
        for cls in _classes(instance.cls):
            role = m.roles(cls.frame.module, cls.node).get(f"self.{name}", "").rstrip("?")
            if role in ("optimizer", "scaler"):
                return True
    return False


@lru_cache(maxsize=1024)
def _trains(node: Method) -> bool:
    return any(isinstance(inner, ast.Attribute) and inner.attr in ("backward", "zero_grad") for inner in walk(node))


@lru_cache(maxsize=1024)
def fields_set(node: Method) -> tuple[tuple[str, ast.expr], ...]:
    """`self.x = value` in a method: x and the value."""
    first = [*node.args.posonlyargs, *node.args.args][:1]
    found = []
    for inner in walk(node):
        if not isinstance(inner, (ast.Assign, ast.AnnAssign)) or inner.value is None:
            continue
        targets: list[ast.expr] = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
        for target in targets:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                match one:
                    case ast.Attribute(value=ast.Name(id=name), attr=attr) if first and name == first[0].arg:
                        found.append((attr, inner.value))
    return tuple(found)


def forget_unset(m: Machine, instance: Instance, world: World) -> None:
    """Whether there is a scaler may hang on what `__init__` leaves None and a setter may set (`def set_amp(self, kind):
    self.amp_type = kind`): it is not known then; nor is what setters are given, and used without asking."""
    for cls in _classes(instance.cls):
        if "caler" not in cls.frame.module.text:
            continue
        deciding = _deciding(cls.frame.module, cls.node)
        deciding |= _used(cls.node) if deciding else set()
        for node in cls.node.body if deciding else ():
            if not isinstance(node, Method) or node in m.entered or node.name == "__init__" or _trains(node):
                continue
            for name, value in fields_set(node):
                if name in deciding and _is_asked(value, node) and world.get(instance, name) == NONE:
                    world.set(instance, name, sym("attr", instance, name))  # as if `__init__` were not seen


def _deciding(module: Module, cls: ast.ClassDef) -> set[str]:
    """The fields that a condition asks before a scaler is made or used, or gradients are clipped."""
    return {
        asked.attr
        for branch in walk(cls)
        if isinstance(branch, ast.If) and any(_GUARDED.search(module.source(inner)) for inner in branch.body)
        for asked in walk(branch.test)
        if isinstance(asked, ast.Attribute) and isinstance(asked.value, ast.Name)
    }


def _used(cls: ast.ClassDef) -> set[str]:
    """The fields that are called, or of which something is read: they are not None there."""
    return {
        used.attr
        for node in walk(cls)
        if isinstance(used := getattr(node, "func" if isinstance(node, ast.Call) else "value", None), ast.Attribute)
        and isinstance(node, ast.Call | ast.Attribute)
        and isinstance(used.value, ast.Name)
    }


def _is_asked(value: ast.expr, node: Method) -> bool:
    """Whether a field is set to what the caller of its method asks for: an argument, or what is looked up by one."""
    asked = {one.arg for one in (*node.args.args[1:], *node.args.kwonlyargs)}
    match value:
        case ast.Name(id=name):
            return name in asked
        case ast.Subscript(value=table):
            return isinstance(table, ast.Name)
    return False


def forget_changed(m: Machine, instance: Instance, world: World) -> None:
    """What methods that have not run change is not known: a flag that `__init__` sets to True or False, a list that it
    leaves empty."""
    for cls in _classes(instance.cls):
        for node in cls.node.body:
            if not isinstance(node, Method) or node in m.entered or node.name == "__init__":
                continue
            other = [name for name, value in fields_set(node) if _another_flag(world.get(instance, name), value)]
            filled = [name for name in _filled(node) if _is_empty(world.get(instance, name))]
            for name in (*other, *filled):
                world.set(instance, name, sym("attr", instance, name))


def _another_flag(stored: Value | None, value: ast.expr) -> bool:
    """Whether a field that is True or False may become the other."""
    flag = stored.value if isinstance(stored, Const) else None
    return isinstance(flag, bool) and not (isinstance(value, ast.Constant) and value.value is flag)


def _is_empty(stored: Value | None) -> bool:
    return isinstance(stored, Items) and not stored.items


@lru_cache(maxsize=1024)
def _filled(node: Method) -> frozenset[str]:
    """The fields that a method appends to: `self.optimizers.append(…)`."""
    first = [*node.args.posonlyargs, *node.args.args][:1]
    found = set()
    for inner in walk(node):
        match inner:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(value=ast.Name(id=name), attr=field), attr="append" | "extend" | "insert"
                )
            ) if first and name == first[0].arg:
                found.add(field)
    return frozenset(found)


def _one(worlds: Iterator[World]) -> World | None:
    """One world for all that a method leaves: they differ in no state of gradients that an entry would keep."""
    found = list(worlds)
    known = {optimizer for world in found for optimizer in protocol.optimizers(world)}
    for world in found:
        for shared in PROTOCOL:
            world.forget(shared)
        for optimizer in known:
            world.set("gradients", optimizer, Gradients("entry"))
        world.contexts, world.loops = (), ()
    joined = join_all(found)
    return joined[0] if joined else None

"""Classes of the project: what they define and inherit, and their objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from amplint.source import events, symbols
from amplint.source.interpret import (
    calls,
    containers,
    expressions,
    functions,
    imports,
    library_calls,
    models,
    protocol,
    statements,
    variables,
)
from amplint.source.interpret.frames import Arguments, Flow, Frame, Results
from amplint.source.interpret.machine import Machine, site
from amplint.source.interpret.world import World, join_all
from amplint.source.values import Class, Const, Function, Instance, Lib, Optimizer, Scaler, Value
from amplint.source.walk import walk


@dataclass(frozen=True, slots=True)
class Super(Value):
    """super() in a method of `cls`, on `owner`."""

    owner: Value
    cls: Value


def define_class(m: Machine, node: ast.ClassDef, world: World, frame: Frame) -> list[World]:
    results = []
    for bases, before in expressions.each(m, node.bases, world, frame, lazily=True):
        cls = Class(node, frame, bases)
        inner = Frame(cls, node, frame.module, frame, frame.caller, frame.call, roles={})
        for after in statements.run(m, node.body, [before], inner, Flow()):
            after.set(variables.scope_to_bind(node.name, frame), node.name, cls)
            results.append(after)
    return join_all(results)


def bases(m: Machine, cls: Class, world: World, frame: Frame) -> Iterator[Value]:
    """The class itself and all its bases, in the order in which attributes are looked up (roughly)."""
    yield cls
    for base in cls.bases:  # what a trainer inherits its model and device from need not say anything of training
        base = imports.resolve(m, base, world, whole=True)
        if isinstance(base, Class):
            if base is not cls:
                yield from bases(m, base, world, frame)
        else:
            yield base


def library_bases(m: Machine, cls: Class, world: World, frame: Frame) -> list[str]:
    return [base.name for base in bases(m, cls, world, frame) if isinstance(base, Lib)]


def method(m: Machine, cls: Class, name: str, world: World, frame: Frame) -> Function | None:
    """The function that a class of the project (or a base of it) defines under this name."""
    for base in bases(m, cls, world, frame):
        if isinstance(base, Class):
            found = world.get(base, name)
            if isinstance(found, Function):
                return replace(found, cls=base)
    return None


def is_module(m: Machine, cls: Class, world: World, frame: Frame) -> bool:
    """Whether objects of the class are nn.Modules: by their base, or because they define a forward."""
    if any(isinstance(base, Lib) and base.name.startswith("torch.nn.") for base in cls.bases):
        return True
    if cls.bases and world.get(cls, "forward") is not None:
        return True
    if any(name.startswith("torch.nn.") for name in library_bases(m, cls, world, frame)):
        return True
    return method(m, cls, "forward", world, frame) is not None and bool(cls.bases)


def handed_on(m: Machine, owner: Value, name: str, world: World, frame: Frame) -> Value:
    """What an object of the project holds, if its `__iter__` or `__getitem__` only hands that on; or the object."""
    function = method(m, owner.cls, name, world, frame) if isinstance(owner, Instance) else None
    if function is None or not isinstance(function.node, ast.FunctionDef):
        return owner
    match [
        one for one in function.node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
    ]:
        case [
            ast.Return(ast.Call(ast.Name("iter"), [ast.Attribute(ast.Name(), field)]))
            | ast.Return(ast.Subscript(ast.Attribute(ast.Name(), field), ast.Name()))
            | ast.Expr(ast.YieldFrom(ast.Attribute(ast.Name(), field)))
        ]:
            held = world.get(owner, field)
            return held if isinstance(held, Value) else owner
    return owner


def overrides(cls: Class, names: tuple[str, ...]) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name in names for node in cls.node.body)


# -- members -----------------------------------------------------------------------------------------------------------


def member(
    m: Machine, owner: Instance | Super | Class, name: str, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """A field or method that the project's code defines; None if it defines none."""
    if isinstance(owner, Class):
        for base in bases(m, owner, world, frame):
            if not isinstance(base, Class):
                continue
            found = world.get(base, name)
            if isinstance(found, Value):
                bound = replace(found, cls=base) if isinstance(found, Function) else found
                if isinstance(bound, Function) and _kind(bound) == "classmethod":
                    bound = replace(bound, owner=owner)
                return [(bound, world)]
        return None
    if isinstance(owner, Super):
        if not isinstance(owner.cls, Class) or not isinstance(owner.owner, Instance):
            return None
        for base in list(bases(m, owner.cls, world, frame))[1:]:
            found = world.get(base, name) if isinstance(base, Class) else None
            if isinstance(found, Function) and isinstance(base, Class):
                return [(replace(found, owner=owner.owner, cls=base), world)]
        return None
    stored = world.get(owner, name)
    if isinstance(stored, Value):
        variables.perhaps_unbound(m, owner, name, stored, node, world, frame, None)
        return [(stored, world)]
    for base in bases(m, owner.cls, world, frame):
        found = world.get(base, name) if isinstance(base, Class) else None
        if isinstance(found, Function) and isinstance(base, Class):
            function = replace(found, cls=base)
            match _kind(function):
                case "property":
                    bound = replace(function, owner=owner, decorators=())
                    return functions.call_function(m, bound, Arguments(), node, world, frame)
                case "staticmethod":
                    return [(function, world)]
            return [(replace(function, owner=owner), world)]
        if isinstance(found, Value):
            return [(found, world)]
    for known, value in world.space(owner).items():
        if isinstance(known, str) and "*" in known and fnmatchcase(name, known):
            return [(value, world)]
    late = _late_field(m, owner, name, world, frame)
    return None if late is None else [(late, world)]


def _kind(function: Function) -> str:
    for decorator in function.decorators:
        if isinstance(decorator, Lib):
            short = decorator.name.rpartition(".")[2]
            if short in ("property", "cached_property"):
                return "property"
            if short in ("staticmethod", "classmethod"):
                return short
    return ""


def surely_has(owner: Value, name: Value, world: World, frame: Frame) -> bool:
    """Whether `hasattr(owner, name)` is true: the object has it, or another method of its class sets it, which has run
    by then."""
    if not isinstance(owner, Instance) or not isinstance(name, Const) or not isinstance(name.value, str):
        return False
    assigned = _assigned_fields(owner.cls.node).get(name.value, ())
    return world.get(owner, name.value) is not None or any(function is not frame.code for _, function in assigned)


def _late_field(m: Machine, instance: Instance, name: str, world: World, frame: Frame) -> Value | None:
    """A field that some other method of the class sets to a new optimizer, scaler, model …: taken as set."""
    for base in bases(m, instance.cls, world, frame):
        if not isinstance(base, Class):
            continue
        for call, function in _assigned_fields(base.node).get(name, ()):
            own = _receiver(function)
            if not isinstance(call, ast.Call) or not own or (instance, name) in m.late:
                continue
            inner = Frame(m.scope(), base.frame.code, base.frame.module, base.frame, frame, call, instance, base)
            m.late.add((instance, name))
            world.set(inner.scope, own, instance)
            loops, contexts = world.loops, world.contexts
            world.loops, world.contexts = (), ()  # it was made before all this
            callees = expressions.evaluate(m, call.func, world, inner)  # none where evaluating it never returns
            made = bool(callees) and library_calls.makes(m, callees[0][0])
            value = next((one for one, _ in expressions.evaluate(m, call, world, inner)), None) if made else None
            world.loops, world.contexts = loops, contexts
            world.forget(inner.scope)
            m.late.discard((instance, name))
            if value is not None:
                world.set(instance, name, value)
                return value
    return None


def _receiver(function: ast.AST) -> str:
    """What a method calls the instance; "" where it takes none."""
    match function:
        case ast.FunctionDef(args=taken) | ast.AsyncFunctionDef(args=taken):
            first = [*taken.posonlyargs, *taken.args][:1]
            return first[0].arg if first else ""
    return ""


@lru_cache(maxsize=1024)
def _assigned_fields(node: ast.ClassDef) -> dict[str, list[tuple[ast.expr, ast.AST]]]:
    """`self.x = call(…)` anywhere in the class: x → the calls, each with its method."""
    found: dict[str, list[tuple[ast.expr, ast.AST]]] = {}
    for function in node.body:
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.args.args:
            own = function.args.args[0].arg
            for inner in walk(function):
                if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Call):
                    for target in inner.targets:
                        match target:
                            case ast.Attribute(value=ast.Name(id=name)) if name == own:
                                found.setdefault(target.attr, []).append((inner.value, function))
    return found


# -- objects -----------------------------------------------------------------------------------------------------------


def instantiate(m: Machine, cls: Class, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """Make an object of a project class and run its __init__."""
    bases = library_bases(m, cls, world, frame)
    place = site(node, frame)
    api = m.library.find_first(bases)
    if api is not None and api.returns == "optimizer":
        bound = api.bind(given.args, given.kwargs)
        of = containers.owners_in(api.argument("parameters", bound))
        optimizer = Optimizer(place, of, cls.node.name, node)
        protocol.register(world, optimizer)
        m.emit(events.Create, node, world, frame, value=optimizer)
        return [(optimizer, world)]
    if api is not None and api.returns == "scaler" and not overrides(cls, ("scale", "step", "unscale_", "update")):
        scaler = Scaler(place, given.kwargs.get("enabled", Const(True)), node)
        m.emit(events.Create, node, world, frame, value=scaler)
        return [(scaler, world)]
    instance = symbols.instance(cls, place)
    if m.alone:
        return [(instance, world)]
    init = method(m, cls, "__init__", world, frame)
    if init is None:
        fill_fields(cls, instance, given.args, given.kwargs, world)
        init = (
            None if given.open else method(m, cls, "__post_init__", world, frame)
        )  # which fields `**` fills is unknown
        given = Arguments(open=True)
    if init is None:
        return [(instance, world)]
    function = replace(init, owner=instance)
    return [(instance, after) for _, after in functions.call_function(m, function, given, node, world, frame)]


def fill_fields(
    cls: Class, instance: Instance, args: tuple[Value, ...], kwargs: dict[str, Value], world: World
) -> None:
    """A class without __init__ (a dataclass, a namespace): its annotated fields in order, then keywords."""
    fields = [
        node.target.id
        for node in cls.node.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    for name, value in (*zip(fields, args, strict=False), *kwargs.items()):
        world.set(instance, name, value)


def open_fields(cls: Class, instance: Instance, world: World) -> None:
    """Where a base or a decorator writes the __init__ (a dataclass, settings), an object that nothing in sight makes
    holds what it was given, which the default of an annotated field does not say."""
    for node in cls.node.body if cls.node.bases or cls.node.decorator_list else ():
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr(), annotation=kind):
                if "ClassVar" in ast.dump(kind):
                    continue
                world.set(instance, name, symbols.sym("attr", instance, name))


def call_instance(
    m: Machine, instance: Instance, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results:
    """`instance(…)`: __call__, or the forward of a module."""
    function = method(m, instance.cls, "__call__", world, frame)
    if function is not None:
        return functions.call_function(m, replace(function, owner=instance), given, node, world, frame)
    return models.forward(m, instance, given, node, world, frame)


def enter_instance(m: Machine, instance: Instance, node: ast.AST, world: World, frame: Frame) -> Results:
    """`with` an object of the project's own: what its __enter__ enters is entered."""
    function = method(m, instance.cls, "__enter__", world, frame)
    if function is None:
        return calls.call_method(m, instance, "__enter__", (), {}, node, world, frame)
    return functions.call_function(m, replace(function, owner=instance), Arguments(), node, world, frame, enters=True)

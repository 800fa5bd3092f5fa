"""Objects: their attributes, items and classes; and names imported from other files of the project."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from amplint.source import events
from amplint.source.interpret import calls, conditions, expressions, library_calls, protocol, statements, tensors
from amplint.source.interpret.frames import Arguments, Flow, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.module import Module
from amplint.source.symbols import fresh, sym
from amplint.source.values import (
    Autocast,
    Checkpoint,
    Choice,
    Class,
    Const,
    Function,
    GradMode,
    Imported,
    Instance,
    Items,
    Lib,
    Many,
    Mapping,
    Model,
    Namespace,
    NullContext,
    Optimizer,
    Parameter,
    Parameters,
    Scaler,
    Sym,
    Tensor,
    Value,
)


@dataclass(frozen=True, slots=True)
class Super(Value):
    """super() in a method of `cls`, on `owner`."""

    owner: Value
    cls: Value


# -- imports -----------------------------------------------------------------------------------------------------------


def resolve(m: Machine, value: Value, world: World, frame: Frame) -> Value:
    """What an imported name is; reads and runs the file that defines it. What is not found is a library name."""
    seen = 0
    while isinstance(value, Imported) and seen < 8:
        seen += 1
        if m.alone:
            return Lib(f"{value.module}.{value.name}".strip("."))
        module = m.project.find(value.module, value.level, value.importer)
        if module is None:
            return Lib(f"{value.module}.{value.name}".strip("."))
        load(m, module, world)
        if not value.name:
            return Namespace(module)
        found = world.get(module_scope(module), value.name)
        if found is None:
            inner = f"{value.module}.{value.name}".strip(".")
            submodule = m.project.find(inner, value.level, value.importer)
            if submodule is None:
                return sym("name", module.path, value.name)
            load(m, submodule, world)
            return Namespace(submodule)
        value = found
    return value


def module_scope(module: Module) -> object:
    return ("module", module.path)


def load(m: Machine, module: Module, world: World) -> None:
    """Run a file's top level once, by itself, and let this world see what it defines."""
    if module not in m.loaded:
        m.loaded[module] = {}  # a circular import sees what is there so far: nothing
        alone = World()
        frame = module_frame(m, module)
        worlds = join_all(statements.run(m, module.tree.body, [alone], frame, Flow()))
        if worlds:
            m.loaded[module] = dict(worlds[0].spaces)
    if module_scope(module) not in world.spaces:
        for owner, space in m.loaded[module].items():
            if owner not in world.spaces:
                world.spaces[owner] = space


def module_frame(m: Machine, module: Module) -> Frame:
    return Frame(module_scope(module), module.tree, module, roles=m.roles(module, module.tree))


def import_star(m: Machine, value: Imported, world: World, frame: Frame) -> None:
    module = m.project.find(value.module, value.level, value.importer)
    if module is None:
        return
    load(m, module, world)
    for name, found in world.space(module_scope(module)).items():
        if isinstance(name, str) and not name.startswith("_"):
            world.set(frame.scope, name, found)


# -- classes -----------------------------------------------------------------------------------------------------------


def bases(m: Machine, cls: Class, world: World, frame: Frame) -> Iterator[Value]:
    """The class itself and all its bases, in the order in which attributes are looked up (roughly)."""
    yield cls
    for base in cls.bases:
        base = resolve(m, base, world, frame)
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


def overrides(cls: Class, names: tuple[str, ...]) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name in names for node in cls.node.body)


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


@lru_cache(maxsize=1024)
def _assigned_fields(node: ast.ClassDef) -> dict[str, list[tuple[ast.expr, ast.AST]]]:
    """`self.x = call(…)` anywhere in the class: x → the calls, each with its method."""
    found: dict[str, list[tuple[ast.expr, ast.AST]]] = {}
    for function in node.body:
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.args.args:
            own = function.args.args[0].arg
            for inner in ast.walk(function):
                if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Call):
                    for target in inner.targets:
                        match target:
                            case ast.Attribute(value=ast.Name(id=name)) if name == own:
                                found.setdefault(target.attr, []).append((inner.value, function))
    return found


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
            if not isinstance(call, ast.Call) or (instance, name) in m.late:
                continue
            inner = Frame(m.scope(), base.frame.code, base.frame.module, base.frame, frame, call, instance, base)
            own = function.args.args[0].arg  # type: ignore[attr-defined]
            m.late.add((instance, name))
            world.set(inner.scope, own, instance)
            loops, contexts = world.loops, world.contexts
            world.loops, world.contexts = (), ()  # it was made before all this
            callee = expressions.evaluate(m, call.func, world, inner)[0][0]
            made = library_calls.makes(m, callee)
            value = expressions.evaluate(m, call, world, inner)[0][0] if made else None
            world.loops, world.contexts = loops, contexts
            world.forget(inner.scope)
            m.late.discard((instance, name))
            if value is not None:
                world.set(instance, name, value)
                return value
    return None


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
        return [(stored, world)]
    for base in bases(m, owner.cls, world, frame):
        found = world.get(base, name) if isinstance(base, Class) else None
        if isinstance(found, Function) and isinstance(base, Class):
            function = replace(found, cls=base)
            match _kind(function):
                case "property":
                    bound = replace(function, owner=owner, decorators=())
                    return calls.call_function(m, bound, Arguments(), node, world, frame)
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


# -- attributes --------------------------------------------------------------------------------------------------------


def zero_gradients(m: Machine, of: frozenset[Value], node: ast.AST, world: World, frame: Frame) -> None:
    """The gradients of the models' parameters are dropped."""
    sure, perhaps = protocol.owners(world, of)
    event = m.emit(events.ZeroGradient, node, world, frame, touched=())
    event.touched = protocol.zero(world, event, sure)
    for optimizer in perhaps:
        if protocol.gradients(world, optimizer).kind != "none":
            world.set("gradients", optimizer, protocol.UNKNOWN["gradients"])


# -- containers --------------------------------------------------------------------------------------------------------


def elements(value: Value) -> list[Value] | None:
    """The elements of a short collection that is known element by element and worth running one by one."""
    match value:
        case Items(items=items) if len(items) <= 8:
            return list(items)
        case Mapping(items=items, open=False) if len(items) <= 8:
            return [key for key, _ in items]
    return None


def element(m: Machine, value: Value, node: ast.AST) -> Value:
    """What a loop variable holds in one round."""
    match value:
        case Many():
            return _renewed(value.item)
        case Items(items=items) if items:
            return merge_elements(list(items))
        case Parameters():
            return Parameter(value.of)
        case Tensor():
            return library_calls.view(value, node, deeper=True)
        case Model() | Instance():
            return sym("item", value, "*")
    return fresh("element")


def _renewed(value: Value) -> Value:
    """Unknown data is other data in each round; things such as models and optimizers stay what they are."""
    match value:
        case Sym(kind="element" | "yielded" | "call" | "unknown"):
            return fresh("element")
        case Items():
            return Items(tuple(_renewed(item) for item in value.items), value.kind)
        case Many():
            return Many(_renewed(value.item))
    return value


def merge_elements(values: list[Value]) -> Value:
    """One value that stands for all of them."""
    if not values:
        return fresh("element")
    first = values[0]
    if all(value == first for value in values[1:]):
        return first
    if all(isinstance(value, Tensor) for value in values):
        of, region, scaler = tensors.provenance(values)
        return Tensor(*tensors.promote(values), of=of, region=region, scaler=scaler)
    kinds = [value for value in values if isinstance(value, Model | Instance | Optimizer | Scaler)]
    return kinds[0] if len(kinds) == len(values) else fresh("element")


def contents(value: Value) -> Iterator[Value]:
    """Everything inside nested containers."""
    match value:
        case Items():
            inner: tuple[Value, ...] = value.items
        case Many():
            inner = (value.item,)
        case Mapping():
            inner = tuple(item for _, item in value.items)
        case Choice():
            inner = (value.yes, value.no)
        case _:
            yield value
            return
    for one in inner:
        yield from contents(one)


def tells(value: Value) -> bool:
    """Whether the sides of a choice act differently: tensors scaled or not, contexts, gradient-holding things."""
    sides = list(contents(value))
    scaled = {side.scaler for side in sides if isinstance(side, Tensor)}
    regions = {side.region for side in sides if isinstance(side, Tensor)}
    return (
        len(scaled) > 1
        or len(regions) > 1
        or any(isinstance(side, Autocast | NullContext | GradMode | Checkpoint) for side in sides)
    )


def blend(value: Choice) -> Value:
    """A choice that makes no difference, as one value."""
    sides = list(contents(value))
    if all(isinstance(side, Tensor) for side in sides):
        return merge_elements(sides)
    found = [side for side in sides if isinstance(side, Tensor)]
    if found and all(isinstance(side, Tensor | Sym | Const) for side in sides):
        return replace(merge_elements(list(found)), dtype="") if len(found) > 1 else replace(found[0], dtype="")  # type: ignore[type-var]
    return conditions.one_of(value) if all(isinstance(side, Sym) for side in sides) else sym("choice", value)

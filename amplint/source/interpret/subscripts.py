"""Subscripts: the parts of containers, tensors and whatever else is indexed."""

from __future__ import annotations

import ast

from amplint.source.interpret import assignment, classes, conditions, containers, operations
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, sym
from amplint.source.tree import names_in
from amplint.source.values import (
    Autocast,
    Checkpoint,
    Choice,
    Class,
    Const,
    Function,
    Gradient,
    Instance,
    Items,
    Lib,
    Many,
    Mapping,
    NullContext,
    Optimizer,
    Parameter,
    Parameters,
    Partial,
    Scaler,
    Sym,
    Tensor,
    Test,
    Value,
)

_DISPATCHED = (Const, Lib, Function, Class, Partial, Autocast, NullContext)  # what a table is there to choose from


def item(m: Machine, owner: Value, index: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    """The value of `owner[index]`."""
    if isinstance(index, Choice) and isinstance(owner, Items | Mapping):
        yes = item(m, owner, index.yes, node, world, frame)
        no = item(m, owner, index.no, node, world, frame)
        return conditions.choice(index.formula, yes, no)
    if isinstance(index, Test) and isinstance(owner, Items) and len(owner.items) == 2:
        return conditions.choice(index.formula, owner.items[1], owner.items[0])
    match owner:
        case Items(items=items) if isinstance(index, Const) and type(index.value) is int:
            if -len(items) <= index.value < len(items):
                return items[index.value]
            return fresh("item")
        case Items(items=items) if items:
            same = all(type(one) is type(items[0]) for one in items)
            return items[0] if same and len(items) == 1 else sym("item", owner, index)
        case Many():
            if isinstance(owner.item, Optimizer | Scaler):
                _by_key(m, node, world)
            return owner.item
        case Mapping():
            found = owner.get(index)
            if found is not None:
                return found
            stored = world.get(owner, index)
            if stored is not None:
                return stored  # type: ignore[no-any-return]
            dispatched = dispatch(owner, index, world)
            return sym("item", owner, index) if dispatched is None else dispatched
        case Tensor():
            return operations.pair(owner, index.value if isinstance(index, Const) else None) or (operations.view(owner))
        case Choice():
            yes = item(m, owner.yes, index, node, world, frame)
            no = item(m, owner.no, index, node, world, frame)
            return conditions.choice(owner.formula, yes, no)
        case Checkpoint():
            return Checkpoint(owner.site, (*owner.path, index))
        case Parameters():
            return Parameter(owner.of)
        case Gradient():
            return owner
        case Instance():
            held = classes.handed_on(m, owner, "__getitem__", world, frame)
            if held is not owner:
                return item(m, held, index, node, world, frame)
    stored = world.get(("items", owner), index)
    if stored is not None:
        return stored  # type: ignore[no-any-return]
    family = world.get(("items", owner), "*")
    if family is not None:
        return family  # type: ignore[no-any-return]
    return part(owner, index)


def _by_key(m: Machine, node: ast.AST, world: World) -> None:
    """One of several optimizers, by what a loop is about: each of its rounds takes another."""
    names = names_in(node.slice) if isinstance(node, ast.Subscript) else set()
    for loop in world.loops:
        target = loop.node.target if isinstance(loop.node, ast.For | ast.AsyncFor) else None
        if target is not None and not names_in(target).isdisjoint(names):
            m.by_key.add(loop.node)


def dispatch(table: Mapping, index: Value, world: World, default: Value | None = None) -> Value | None:
    """`{"fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype]`: one of few, by the key that it equals. A default
    that the table has, too, is only for words that mean nothing."""
    keys = [key for key, _ in table.items]
    values = [value for _, value in table.items]
    other = default is not None and default not in values
    plain = isinstance(index, Sym) and all(isinstance(key, Const) for key in keys)
    if table.open or not plain or not 0 < len(keys) <= 4 or not all(isinstance(value, _DISPATCHED) for value in values):
        return None
    chosen = values[-1]  # a key that is not there is an error
    known = conditions.compare("==", index, keys[-1])
    if default is not None and other:
        chosen = conditions.choice(known, chosen, default)
    for key, value in reversed(list(zip(keys[:-1], values[:-1], strict=True))):
        asked = conditions.compare("==", index, key)
        known = conditions.either(asked, known)
        chosen = conditions.choice(asked, value, chosen)
    if not other:
        world.suppose(known)
    return chosen


def part(owner: Value, index: object) -> Value:
    """An element of something unknown; of a tensor, a tensor of the same origin."""
    if isinstance(owner, Tensor):
        return operations.pair(owner, index) or operations.view(owner, deeper=True)
    if isinstance(owner, Many):
        return owner.item
    return sym("item", owner, index if isinstance(index, Value) else Const(index))


def set_item(
    m: Machine,
    owner: Value,
    index: Value,
    target: ast.Subscript,
    value: Value,
    world: World,
    frame: Frame,
) -> list[World]:
    """`owner[index] = value`: containers are values, so the variable that holds one is bound anew."""
    new: Value | None = _with_entry(owner, index, value)
    if new is not None:
        return assignment.assign(m, target.value, new, world, frame)
    if isinstance(owner, Items):
        if (
            isinstance(index, Const)
            and isinstance(index.value, int)
            and -len(owner.items) <= index.value < len(owner.items)
        ):
            items = list(owner.items)
            items[index.value] = value
            new = Items(tuple(items), owner.kind)
        else:
            new = Many(containers.merge_elements([*owner.items, value]))
        return assignment.assign(m, target.value, new, world, frame)
    if isinstance(owner, Tensor | Parameter):
        operations.operation(m, "index_put", (owner, value), {"index": index}, target, world, frame)
        return [world]
    world.set(("items", owner), index if isinstance(index, Const) else "*", value)
    return [world]


def _with_entry(owner: Value, index: Value, value: Value) -> Value | None:
    """A dict, or whichever of two it is, with one entry more (or another)."""
    if isinstance(owner, Choice):
        yes, no = _with_entry(owner.yes, index, value), _with_entry(owner.no, index, value)
        return conditions.choice(owner.formula, yes, no) if yes is not None and no is not None else None
    if not isinstance(owner, Mapping):
        return None
    kept = tuple((key, old) for key, old in owner.items if key != index)
    return Mapping((*kept, (index, value)), owner.open or not isinstance(index, Const), owner.node)

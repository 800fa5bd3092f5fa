"""Assignments: targets are bound to values."""

from __future__ import annotations

import ast
import re

from amplint.source.interpret import attributes, conditions, expressions, operators, protocol, subscripts, variables
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import options
from amplint.source.values import Choice, Items, Many, Optimizer, Scaler, Sym, Value

_RESUMES = re.compile(r"load|resume|restor|checkpoint|ckpt", re.IGNORECASE)


def assign_all(m: Machine, targets: list[ast.expr], value: Value, world: World, frame: Frame) -> list[World]:
    worlds = [world]
    for target in targets:
        worlds = [after for before in worlds for after in assign(m, target, value, before, frame)]
    return worlds


def assign(m: Machine, target: ast.expr, value: Value, world: World, frame: Frame) -> list[World]:
    """Bind a target to a value."""
    match target:
        case ast.Name():
            value = variables.typed(m, value, target, world, frame)
            m.call(value, target.id)
            scope = variables.scope_to_bind(target.id, frame)
            protocol.replaced(world, world.get(scope, target.id), value)
            world.set(scope, target.id, value)
            return [world]
        case ast.Attribute():
            return [
                after
                for owner, before in expressions.evaluate(m, target.value, world, frame)
                for after in attributes.set_attribute(m, owner, target, value, before, frame)
            ]
        case ast.Subscript():
            return [
                after
                for owner, before in expressions.evaluate(m, target.value, world, frame)
                for index, between in expressions.evaluate(m, target.slice, before, frame)
                for after in subscripts.set_item(m, owner, index, target, value, between, frame)
            ]
        case ast.Tuple() | ast.List():
            worlds = [world]
            for element, part in zip(target.elts, unpack(value, target.elts), strict=True):
                worlds = [after for before in worlds for after in assign(m, element, part, before, frame)]
            return worlds
        case ast.Starred():
            return assign(m, target.value, value, world, frame)
    return [world]


def unpack(value: Value, targets: list[ast.expr]) -> list[Value]:
    """The parts that each target of a tuple assignment gets."""
    count = len(targets)
    match value:
        case Items(items=items) if len(items) == count and not any(isinstance(t, ast.Starred) for t in targets):
            return list(items)
        case Choice():
            yes, no = unpack(value.yes, targets), unpack(value.no, targets)
            return [conditions.choice(value.formula, one, two) for one, two in zip(yes, no, strict=True)]
        case Many():
            return [Many(value.item) if isinstance(target, ast.Starred) else value.item for target in targets]
    return [subscripts.part(value, index) for index in range(count)]


def wrapped(node: ast.Assign, value: Value, world: World, frame: Frame) -> Value:
    """`optimizer = Lookahead(optimizer)`, `net, optimizer = resume(net, optimizer)`: an unknown wrapper that takes its
    argument's name keeps its identity, and so does what a helper that resumes gives back among other things. (What
    prepares several things at once may give back one that steps in its own way.)"""
    if not isinstance(value, Sym) or not isinstance(node.value, ast.Call) or len(node.targets) != 1:
        return value
    target, call = node.targets[0], node.value
    if isinstance(target, ast.Tuple | ast.List):
        if not _RESUMES.search(ast.unparse(call.func)) or any(isinstance(one, ast.Starred) for one in target.elts):
            return value
        given = {one.id for one in (*call.args, *(k.value for k in call.keywords)) if isinstance(one, ast.Name)}
        parts = [_kept(one, given, world, frame) for one in target.elts]
        if not any(parts):
            return value
        return Items(tuple(part or subscripts.part(value, index) for index, part in enumerate(parts)))
    kept = _kept(target, {one.id for one in call.args if isinstance(one, ast.Name)}, world, frame)
    return kept if isinstance(kept, Optimizer | Scaler) else value


def _kept(target: ast.expr, given: set[str], world: World, frame: Frame) -> Value | None:
    """The optimizer or scaler that a name holds, if a call was given it by this name."""
    if not isinstance(target, ast.Name) or target.id not in given:
        return None
    old = world.get(frame.scope, target.id)
    return old if isinstance(old, Value) and any(isinstance(o, Optimizer | Scaler) for o in options(old)) else None


def augment(m: Machine, node: ast.AugAssign, world: World, frame: Frame) -> list[World]:
    return [
        after
        for old, w1 in expressions.evaluate(m, node.target, world, frame)  # a Store name evaluates like a Load name
        for operand, w2 in expressions.evaluate(m, node.value, w1, frame)
        for new, w3 in operators.augmented(m, node, old, operand, w2, frame)
        for after in assign(m, node.target, new, w3, frame)
    ]

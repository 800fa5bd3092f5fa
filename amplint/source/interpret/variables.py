"""Variables: what a name holds, and which scope it belongs to; what is unknown is what the code uses it as."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Hashable

from amplint.source import events
from amplint.source.interpret import conditions, imports, protocol, tensors
from amplint.source.interpret.frames import Frame, Results, scopes
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.roles import path_of
from amplint.source.interpret.world import PERHAPS, World, perhaps_bound
from amplint.source.symbols import ask, made_by_another, options, sym
from amplint.source.values import NONE, Choice, Const, Instance, Items, Lib, Optimizer, Scaler, Sym, Value


def path_text(node: ast.AST) -> str:
    return path_of(node) or ""


_BUILTINS = frozenset(dir(builtins))


def scope_to_bind(name: str, frame: Frame) -> object:
    """The scope that an assignment to `name` writes to."""
    if name in frame.outer:
        for above in list(scopes(frame))[1:]:
            if isinstance(above.code, ast.Module) or name in above.roles:
                return above.scope
    return frame.scope


def lookup(m: Machine, node: ast.Name, world: World, frame: Frame) -> Results:
    """What a name stands for; an imported one is not resolved."""
    name = node.id
    for where in scopes(frame):
        value = world.get(where.scope, name)
        if value is not None:
            value = imports.define(m, value, world)
            if name in m.unset and isinstance(value, Const) and where.code is m.project.main.tree:
                value = sym("name", where.module.path, name)
            if PERHAPS in world.spaces:
                perhaps_unbound(m, where.scope, name, value, node, world, frame, where)
            return [(typed(m, value, node, world, where if where is not frame else frame), world)]
    module_scope = next(where for where in scopes(frame) if isinstance(where.code, ast.Module))
    stars = world.get(module_scope.scope, "*")
    if isinstance(stars, Items) and name not in _BUILTINS:
        for star in stars.items:
            assert isinstance(star, Const)
            if m.library.find(f"{star.value}.{name}") or tensors.op_of(f"{star.value}.{name}"):
                return [(Lib(f"{star.value}.{name}"), world)]
    if name in _BUILTINS:
        return [(Lib(f"builtins.{name}"), world)]
    unknown = sym("name", frame.module.path, name)
    return [(typed(m, unknown, node, world, module_scope), world)]


def perhaps_unbound(
    m: Machine, owner: Hashable, name: str, value: Value, node: ast.AST, world: World, frame: Frame, home: Frame | None
) -> None:
    """Tell of a name or field of AMP that is used where it may have no value."""
    bound = perhaps_bound(world, owner, name)
    if (
        bound is not True
        and conditions.possible(conditions.negate(bound), world.facts)
        and m.once("unbound", node, frozenset(world.facts.items()))
    ):
        m.observe(events.Unbound, node, world, frame, name=name, value=value, owner=owner, bound=bound, home=home)


def typed(m: Machine, value: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    """An unknown value as what the code uses it as."""
    if isinstance(value, Sym) and (frame.roles or value in m.scalers):
        role = frame.roles.get(path_text(node)) or m.scalers.get(value)  # here, or where it was passed on from
        if role is not None:
            return typed_as(m, value, role, world)
    elif isinstance(value, Choice) and (role := frame.roles.get(path_text(node))):
        if role.rstrip("?") == "optimizer" and all(isinstance(o, Sym) and o.kind == "call" for o in options(value)):
            # What either of two unknown calls returned nobody else has: one optimizer, however it was made.
            return typed_as(m, sym("choice", *options(value)), role, world)
        yes, no = (typed(m, side, node, world, frame) for side in (value.yes, value.no))
        return conditions.choice(value.formula, yes, no)
    elif isinstance(value, Optimizer):
        protocol.register(world, value, entry=m.in_entry)
    return value


def typed_as(m: Machine, value: Sym, role: str, world: World) -> Value:
    kind = role.rstrip("?")
    if kind == "model":
        m.models.update(options(value))
        return value
    known: Value
    if kind == "scaler":
        if made_by_another(value):
            return value
        m.scalers[value] = role
        known = Scaler(value, sym("attr", value, "is_enabled"))
    elif isinstance(value.parts[0], Optimizer) and value.kind != "item":  # where there are several, it is a list
        return value.parts[0]  # what a wrapper holds
    else:
        optimizer = Optimizer(value)
        protocol.register(world, optimizer, entry=m.in_entry or _given(value))
        known = optimizer
    return conditions.choice(ask("truth", value), known, NONE) if role.endswith("?") else known


def _given(value: Sym) -> bool:
    """Whether a thing was there before what amplint runs began: its gradients may hold anything."""
    if value.kind == "attr":
        inner = value.parts[0]
        return isinstance(inner, Instance) or (isinstance(inner, Sym) and _given(inner))
    return value.kind in ("argument", "name")

"""Statements: how worlds flow through them."""

from __future__ import annotations

import ast

from amplint.source import events
from amplint.source.interpret import (
    assignment,
    branches,
    calls,
    contexts,
    expressions,
    library_calls,
    loops,
    objects,
    variables,
)
from amplint.source.interpret.frames import Flow, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.values import NONE, Autocast, Class, Const, Function, Imported, Items, Lib, Tensor, Value


def run(m: Machine, body: list[ast.stmt], worlds: list[World], frame: Frame, flow: Flow) -> list[World]:
    """Run a block in each world; returns the worlds that reach its end."""
    for statement in body:
        if not worlds:
            break
        after: list[World] = []
        for world in worlds:
            after += execute(m, statement, world, frame, flow)
        worlds = join_all(after) if len(after) > 1 else after
    return worlds


def execute(m: Machine, node: ast.stmt, world: World, frame: Frame, flow: Flow) -> list[World]:
    m.tick()
    match node:
        case ast.Expr():
            return _expression(m, node, world, frame, flow)
        case ast.Assign():
            return [
                after
                for value, before in expressions.evaluate(m, node.value, world, frame)
                for after in assignment.assign_all(
                    m, node.targets, assignment.wrapped(node, value, before, frame), before, frame
                )
            ]
        case ast.AnnAssign():
            if node.value is None:
                return [world]
            return [
                after
                for value, before in expressions.evaluate(m, node.value, world, frame)
                for after in assignment.assign(m, node.target, value, before, frame)
            ]
        case ast.AugAssign():
            return assignment.augment(m, node, world, frame)
        case ast.If():
            return branches.run_if(m, node, world, frame, flow)
        case ast.For() | ast.AsyncFor():
            return loops.run_for(m, node, world, frame, flow)
        case ast.While():
            return loops.rounds(m, node, world, frame, flow)
        case ast.With() | ast.AsyncWith():
            return _with(m, node, list(node.items), world, frame, flow)
        case ast.Return():
            if node.value is None:
                flow.returns.append((NONE, world))
            else:
                flow.returns += expressions.evaluate(m, node.value, world, frame)
            return []
        case ast.Break():
            flow.breaks.append(world)
            return []
        case ast.Continue():
            flow.continues.append(world)
            return []
        case ast.Raise():
            return []
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return _define(m, node, world, frame)
        case ast.ClassDef():
            return _define_class(m, node, world, frame)
        case ast.Import() | ast.ImportFrom():
            _import(m, node, world, frame)
            return [world]
        case ast.Try() | ast.TryStar():
            return branches.run_try(m, node, world, frame, flow)
        case ast.Assert():
            outcomes = branches.decide(m, node.test, world, frame)
            return [after for answer, after in outcomes if answer] or [world]
        case ast.Delete():
            for target in node.targets:
                if isinstance(target, ast.Name):
                    world.drop(frame.scope, target.id)
            return [world]
        case ast.Match():
            return branches.run_match(m, node, world, frame, flow)
    return [world]


def _expression(m: Machine, node: ast.Expr, world: World, frame: Frame, flow: Flow) -> list[World]:
    inner = node.value
    if isinstance(inner, ast.Yield):
        results = [(NONE, world)] if inner.value is None else expressions.evaluate(m, inner.value, world, frame)
        flow.yields += [(value, after.copy()) for value, after in results]
        return [after for _, after in results]
    after = []
    for value, world_after in expressions.evaluate(m, inner, world, frame):
        if isinstance(value, Autocast) or (isinstance(value, Tensor) and value.made == "scale" and value.scaler):
            m.observe(events.Discard(node, frame, world_after.contexts, world_after.loops, world_after.facts, value))
        if not isinstance(value, Const) or value.value is not library_calls.NEVER:
            after.append(world_after)
    return after


def _with(
    m: Machine, node: ast.With | ast.AsyncWith, items: list[ast.withitem], world: World, frame: Frame, flow: Flow
) -> list[World]:
    """Enter the items one by one; leave them all together at the end."""
    if not items:
        return run(m, node.body, [world], frame, flow)
    first, rest = items[0], items[1:]
    outside = world.contexts
    after: list[World] = []
    inner = Flow()
    for value, before in expressions.evaluate(m, first.context_expr, world, frame):
        for bound, entered in contexts.enter(m, value, first.context_expr, node, before, frame):
            started = [entered]
            if first.optional_vars is not None:
                started = assignment.assign(m, first.optional_vars, bound, entered, frame)
            for one in started:
                after += _with(m, node, rest, one, frame, inner)
    leaving = [*after, *inner.breaks, *inner.continues, *(w for _, w in inner.returns)]
    for one in leaving:
        contexts.leave(one, outside)
    flow.stop(inner)
    flow.breaks += inner.breaks
    flow.continues += inner.continues
    return join_all(after)


# -- definitions -------------------------------------------------------------------------------------------------------


def _define(m: Machine, node: ast.FunctionDef | ast.AsyncFunctionDef, world: World, frame: Frame) -> list[World]:
    results = []
    for decorators, before in expressions.each(m, node.decorator_list, world, frame):
        for defaults, after in calls.defaults(m, node.args, before, frame):
            function = Function(node, frame, defaults, decorators, cls=None)
            after.set(variables.scope_to_bind(node.name, frame), node.name, function)
            results.append(after)
    return results


def _define_class(m: Machine, node: ast.ClassDef, world: World, frame: Frame) -> list[World]:
    results = []
    for bases, before in expressions.each(m, node.bases, world, frame, lazily=True):
        cls = Class(node, frame, bases)
        inner = Frame(cls, node, frame.module, frame, frame.caller, frame.call, roles={})
        for after in run(m, node.body, [before], inner, Flow()):
            after.set(variables.scope_to_bind(node.name, frame), node.name, cls)
            results.append(after)
    return join_all(results)


def _import(m: Machine, node: ast.Import | ast.ImportFrom, world: World, frame: Frame) -> None:
    scope = frame.scope
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            name = alias.name if alias.asname else top
            local = m.project.has(top)
            value: Value = Imported(name, "", 0, frame.module) if local else Lib(name)
            world.set(scope, alias.asname or top, value)
        return
    base = node.module or ""
    local = node.level > 0 or m.project.has(base.partition(".")[0])
    for alias in node.names:
        if alias.name == "*":
            if local:
                objects.import_star(m, Imported(base, "", node.level, frame.module), world, frame)
            elif base.startswith("torch"):
                world.set(scope, "*", Items((*_stars(world, scope), Const(base))))
            continue
        value = Imported(base, alias.name, node.level, frame.module) if local else Lib(f"{base}.{alias.name}")
        world.set(scope, alias.asname or alias.name, value)


def _stars(world: World, scope: object) -> tuple[Value, ...]:
    found = world.get(scope, "*")
    return found.items if isinstance(found, Items) else ()

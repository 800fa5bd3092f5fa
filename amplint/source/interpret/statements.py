"""Statements: how worlds flow through them."""

from __future__ import annotations

import ast

from amplint.source import events
from amplint.source.interpret import (
    assignment,
    branches,
    classes,
    conditions,
    contexts,
    expressions,
    functions,
    imports,
    loops,
)
from amplint.source.interpret.frames import NEVER, Flow, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.values import NONE, Autocast, Const, Tensor


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
            return functions.define_function(m, node, world, frame)
        case ast.ClassDef():
            return classes.define_class(m, node, world, frame)
        case ast.Import() | ast.ImportFrom():
            imports.run_import(m, node, world, frame)
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
            m.observe(events.Discard, node, world_after, frame, value=value)
        if not isinstance(value, Const) or value.value is not NEVER:
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
        for wrong in filter(contexts.is_class, conditions.sides(value, before.facts)):
            m.observe(events.CannotEnter, first.context_expr, before, frame, value=wrong, called=False)
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

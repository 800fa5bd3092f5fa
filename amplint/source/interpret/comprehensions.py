"""Comprehensions: one element that stands for all, or all where they are known and few."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.source.interpret import assignment, classes, containers, expressions
from amplint.source.interpret.frames import Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.values import Const, Items, Many, Mapping, Optimizer, Parameter, Parameters, Scaler, Value


def comprehension(
    m: Machine,
    node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp,
    world: World,
    frame: Frame,
) -> Results:
    """One representative element; where the elements are known and few, all of them."""
    inner = Frame(
        m.scope(), frame.code, frame.module, frame, frame.caller, frame.call, frame.owner, frame.cls, frame.roles
    )
    results: Results = []
    element = node.value if isinstance(node, ast.DictComp) else node.elt
    first = node.generators[0]
    for whole, before in expressions.evaluate(m, first.iter, world, frame):
        iterable = classes.handed_on(m, whole, "__iter__", before, frame)
        known = containers.elements(iterable)
        if known is not None and len(node.generators) == 1 and not first.ifs:
            parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [element]
            runs: list[tuple[tuple[tuple[Value, ...], ...], World]] = [((), before)]
            for one in _apart(known):
                runs = [
                    ((*made, values), after)
                    for made, start in runs
                    for bound in assignment.assign(m, first.target, one, start, inner)
                    for values, after in expressions.each(m, parts, bound, inner)
                ]
            results += [(_all(made, node), after) for made, after in runs]
            continue
        bound = assignment.assign(m, first.target, containers.element(iterable), before, inner)
        for generator in node.generators[1:]:
            bound = [
                inside
                for start in bound
                for value, after in expressions.evaluate(m, generator.iter, start, inner)
                for inside in assignment.assign(m, generator.target, containers.element(value), after, inner)
            ]
        for start in bound:
            results += [(_many(value, node), after) for value, after in expressions.evaluate(m, element, start, inner)]
    for _, after in results:
        after.forget(inner.scope)
    return results


def _apart(known: Sequence[Value]) -> Sequence[Value]:
    """The elements, of scalers and optimizers each once: what every round of a loop added is one value here, and stands
    for as many as there are."""
    if not any(isinstance(inner, Scaler | Optimizer) for one in known for inner in (one, *_inside(one))):
        return known
    return [one for place, one in enumerate(known) if one not in known[:place]]


def _inside(value: Value) -> tuple[Value, ...]:
    return value.items if isinstance(value, Items) else ()


def _all(made: tuple[tuple[Value, ...], ...], node: ast.AST) -> Value:
    """All elements, where they are known."""
    if isinstance(node, ast.DictComp):
        unknown = not all(isinstance(values[0], Const) for values in made)
        return Mapping(tuple((values[0], values[1]) for values in made), unknown, node)
    return Items(tuple(values[0] for values in made), "list")


def _many(value: Value, node: ast.AST) -> Value:
    if isinstance(value, Parameter) and value.dtype != "float32" and not isinstance(node, ast.DictComp):
        return Parameters(value.of)
    return Many(value)

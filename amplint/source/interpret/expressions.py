"""Expressions: what they stand for. Evaluation yields a value for each world, because calls inside may fork it."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.source.interpret import (
    attributes,
    calls,
    comprehensions,
    containers,
    functions,
    imports,
    operators,
    subscripts,
    variables,
)
from amplint.source.interpret.frames import Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, sym
from amplint.source.values import Const, Function, Items, Many, Mapping, Value


def evaluate(m: Machine, node: ast.expr, world: World, frame: Frame) -> Results:
    """The value of an expression, once per world that evaluating it leads to."""
    m.tick()
    match node:
        case ast.Constant():
            return [(Const(node.value, node), world)]
        case ast.Name():
            results = variables.lookup(m, node, world, frame)
            return [(imports.resolve(m, value, after), after) for value, after in results]
        case ast.Attribute():
            return _attribute(m, node, world, frame)
        case ast.Call():
            return calls.evaluate_call(m, node, world, frame)
        case ast.BinOp():
            return [
                (operators.binary(m, node.op, left, right, node, w2, frame), w2)
                for left, w1 in evaluate(m, node.left, world, frame)
                for right, w2 in evaluate(m, node.right, w1, frame)
            ]
        case ast.UnaryOp():
            return [
                (operators.unary(node.op, value), after) for value, after in evaluate(m, node.operand, world, frame)
            ]
        case ast.BoolOp():
            return operators.bool_op(m, node, world, frame)
        case ast.Compare():
            return operators.compare(m, node, world, frame)
        case ast.IfExp():
            return operators.if_expression(m, node, world, frame)
        case ast.Tuple() | ast.List() | ast.Set():
            return _sequence(m, node, world, frame)
        case ast.Dict():
            return _dict(m, node, world, frame)
        case ast.Subscript():
            return [
                (variables.typed(m, subscripts.item(m, owner, index, node, w2, frame), node, w2, frame), w2)
                for owner, w1 in evaluate(m, node.value, world, frame)
                for index, w2 in evaluate(m, node.slice, w1, frame)
            ]
        case ast.Lambda():
            return [
                (Function(node, frame, given, ()), after)
                for given, after in functions.defaults(m, node.args, world, frame)
            ]
        case ast.NamedExpr():
            results = []
            for value, after in evaluate(m, node.value, world, frame):
                after.set(variables.scope_to_bind(node.target.id, frame), node.target.id, value)
                results.append((value, after))
            return results
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            return comprehensions.comprehension(m, node, world, frame)
        case ast.Starred() | ast.Await() | ast.FormattedValue():
            return evaluate(m, node.value, world, frame)
        case ast.JoinedStr():
            return _f_string(m, node, world, frame)
        case ast.Slice():
            return [(sym("slice", id(node)), world)]
        case ast.Yield() | ast.YieldFrom():
            return [(fresh("sent"), world)]
    return [(fresh(), world)]


def each(
    m: Machine, nodes: Sequence[ast.expr], world: World, frame: Frame, lazily: bool = False
) -> list[tuple[tuple[Value, ...], World]]:
    """Evaluate expressions one after the other; `lazily`: files that only a bare name comes from are not read yet."""
    if not nodes:
        return [((), world)]
    results: list[tuple[list[Value], World]] = [([], world)]
    for node in nodes:
        grown: list[tuple[list[Value], World]] = []
        for values, before in results:
            bare = lazily and isinstance(node, ast.Name)
            found = variables.lookup(m, node, before, frame) if bare else evaluate(m, node, before, frame)  # type: ignore[arg-type]
            if len(found) == 1:  # nearly always: a table of 100 000 numbers is not copied 100 000 times
                values.append(found[0][0])
                grown.append((values, found[0][1]))
            else:
                grown += [([*values, value], after) for value, after in found]
        results = grown
    return [(tuple(values), after) for values, after in results]


def _attribute(m: Machine, node: ast.Attribute, world: World, frame: Frame) -> Results:
    results = []
    for owner, before in evaluate(m, node.value, world, frame):
        for value, after in attributes.attribute(m, owner, node.attr, node, before, frame):
            results.append((variables.typed(m, value, node, after, frame), after))
    return results


# -- displays ----------------------------------------------------------------------------------------------------------


def _sequence(m: Machine, node: ast.Tuple | ast.List | ast.Set, world: World, frame: Frame) -> Results:
    kind = {ast.Tuple: "tuple", ast.List: "list", ast.Set: "set"}[type(node)]
    results: Results = []
    for values, after in each(m, node.elts, world, frame):
        items: list[Value] = []
        open_ended: list[Value] = []
        for element, value in zip(node.elts, values, strict=True):
            if isinstance(element, ast.Starred):
                known = containers.elements(value)
                if known is None:
                    open_ended.append(containers.element(value))
                else:
                    items += known
            else:
                items.append(value)
        if open_ended:
            many = containers.merge_elements([*items, *open_ended])
            results.append((Many(many), after))
        else:
            results.append((Items(tuple(items), kind), after))
    return results


def _dict(m: Machine, node: ast.Dict, world: World, frame: Frame) -> Results:
    results: Results = []
    keys = [key for key in node.keys if key is not None]
    for key_values, w1 in each(m, keys, world, frame):
        for values, w2 in each(m, node.values, w1, frame):
            items: list[tuple[Value, Value]] = []
            open_ended = False
            names = iter(key_values)
            for key, value in zip(node.keys, values, strict=True):
                if key is None:
                    if isinstance(value, Mapping):
                        items += value.items
                        open_ended |= value.open
                    else:
                        open_ended = True
                else:
                    items.append((next(names), value))
            results.append((Mapping(tuple(items), open_ended, node), w2))
    return results


def _f_string(m: Machine, node: ast.JoinedStr, world: World, frame: Frame) -> Results:
    """The text, with `*` for what is not known: names that code builds, as in getattr(self, f"scaler{i}")."""
    text = ""
    for piece in node.values:
        if isinstance(piece, ast.Constant):
            text += str(piece.value)
        elif isinstance(piece, ast.FormattedValue):
            results = evaluate(m, piece.value, world, frame)
            if not results:  # a call that never returns
                return []
            value = results[0][0]
            text += str(value.value) if isinstance(value, Const) else "*"
    return [(Const(text), world)]

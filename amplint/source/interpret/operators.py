"""Operators: arithmetic on constants and tensors, and conditions, which fork worlds only where it matters."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from amplint.source.interpret import conditions, containers, expressions, operations, tensors, training, versions
from amplint.source.interpret.frames import Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join
from amplint.source.symbols import ask, fresh, sym
from amplint.source.values import (
    Choice,
    Const,
    Formula,
    Gradient,
    Items,
    Many,
    Mapping,
    Parameter,
    Parameters,
    Sym,
    Tensor,
    Test,
    Value,
)

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}
_TENSOR_OPS: dict[type, str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
    ast.MatMult: "matmul",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "remainder",
}
_COMPARISONS: dict[type, str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}
ONE = Const(1)
LONGEST = 4096  # items, characters or bits of what an operation gives: sizes may double with every line


def binary(m: Machine, op: ast.operator, left: Value, right: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    """`left op right`."""
    if isinstance(left, Mapping) and isinstance(right, Mapping) and isinstance(op, ast.BitOr):
        return Mapping((*left.items, *right.items), left.open or right.open, right.node or left.node)
    if isinstance(left, Const) and isinstance(right, Const):
        return fold(op, left.value, right.value)
    if isinstance(left, Items) and isinstance(right, Items) and isinstance(op, ast.Add):
        items = (*left.items, *right.items)
        return Items(items, left.kind) if len(items) <= LONGEST else Many(containers.merge_elements(list(items)))
    if isinstance(op, ast.Mult) and isinstance(left, Items) and len(left.items) == 1:
        return Many(left.items[0])
    if isinstance(op, ast.Add) and isinstance(left, Parameters) and isinstance(right, Parameters):
        return Parameters(left.of | right.of)
    if isinstance(left, Tensor | Parameter) or isinstance(right, Tensor | Parameter) or _holds_tensor(left, right):
        name = _TENSOR_OPS.get(type(op), "")
        # 1 / x is x.reciprocal() * 1, which autocast runs in float32
        if isinstance(op, ast.Div) and isinstance(left, Const):
            return operations.operation(m, "reciprocal", (right,), {}, node, world, frame)
        return operations.operation(m, name, (left, right), {}, node, world, frame)
    if isinstance(op, ast.MatMult):
        return operations.operation(m, "matmul", (left, right), {}, node, world, frame)
    if isinstance(left, Choice) and isinstance(right, Const) and not isinstance(left.yes, Choice):
        yes = binary(m, op, left.yes, right, node, world, frame)
        no = binary(m, op, left.no, right, node, world, frame)
        return conditions.choice(left.formula, yes, no)
    if isinstance(op, ast.Mod) and isinstance(right, Choice) and ONE in (right.yes, right.no):
        # one flag makes the scaler and rules out accumulation: every batch is the last of its window there
        yes, no = (Const(0) if side == ONE else sym("op", "Mod", left, side) for side in (right.yes, right.no))
        return conditions.choice(right.formula, yes, no)
    if isinstance(left, Gradient) or isinstance(right, Gradient):
        return left if isinstance(left, Gradient) else right
    if isinstance(op, ast.BitAnd | ast.BitOr) and isinstance(left, Test) and isinstance(right, Test):
        join = conditions.both if isinstance(op, ast.BitAnd) else conditions.either
        return Test(join(left.formula, right.formula))
    return sym("op", type(op).__name__, left, right)


def _holds_tensor(left: Value, right: Value) -> bool:
    return any(isinstance(side, Choice) and any(True for _ in tensors.tensors_in((side,))) for side in (left, right))


def fold(op: ast.operator, left: Any, right: Any) -> Value:
    """Arithmetic on constants, where it is cheap and defined."""
    if isinstance(op, ast.Pow):
        if isinstance(left, int | float) and isinstance(right, int | float) and abs(right) <= 1024 and abs(left) <= 1e6:
            try:
                value = left**right
            except (ArithmeticError, ValueError):
                return fresh()
            return Const(value) if isinstance(value, int | float) else fresh()
        return fresh()
    function = _ARITHMETIC.get(type(op))
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    texts = isinstance(left, str) and isinstance(right, str) and isinstance(op, ast.Add)
    if function is None or not (numbers or texts) or (isinstance(op, ast.LShift) and not 0 <= right <= 1024):
        return fresh()
    try:
        value = function(left, right)
    except (ArithmeticError, TypeError, ValueError):
        return fresh()
    size = len(value) if isinstance(value, str) else value.bit_length() if isinstance(value, int) else 0
    return Const(value) if size <= LONGEST else fresh()


def augmented(m: Machine, node: ast.AugAssign, old: Value, operand: Value, world: World, frame: Frame) -> Results:
    """`old op= operand`."""
    if isinstance(old, Items) and isinstance(operand, Items) and isinstance(node.op, ast.Add):
        return [(Items((*old.items, *operand.items), old.kind), world)]
    if isinstance(old, Parameter | Parameters):
        training.change_weights(m, old.of, "assigned in place", node, world, frame)
        return [(old, world)]
    if isinstance(old, Gradient):
        if isinstance(node.op, ast.Add | ast.Sub) and not isinstance(operand, Gradient):
            training.read_gradient(m, old.of, "added to", node, world, frame)
        return [(old, world)]
    value = binary(m, node.op, old, operand, node, world, frame)
    if isinstance(old, Tensor) and isinstance(value, Tensor) and old.dtype:
        value = replace(value, dtype=old.dtype, trust=old.trust)
    return [(value, world)]


def unary(op: ast.unaryop, value: Value) -> Value:
    if isinstance(op, ast.Not):
        formula = conditions.negate(conditions.truth(value))
        return Const(formula) if isinstance(formula, bool) else Test(formula)
    match value:
        case Const(value=int() | float() as number) if not isinstance(op, ast.Invert) or isinstance(number, int):
            if isinstance(op, ast.USub):
                return Const(-number, value.node)
            return Const(+number) if isinstance(op, ast.UAdd) else Const(~int(number))
        case Choice():
            return conditions.choice(value.formula, unary(op, value.yes), unary(op, value.no))
        case Tensor() | Parameter() | Gradient() | Parameters():
            return value
        case Test() if isinstance(op, ast.Invert):
            return Test(conditions.negate(value.formula))
    return sym("unary", type(op).__name__, value)


# -- conditions --------------------------------------------------------------------------------------------------------


def bool_op(m: Machine, node: ast.BoolOp, world: World, frame: Frame) -> Results:
    """`a and b`: b is evaluated only where a does not decide."""
    return _chain(m, node.values, isinstance(node.op, ast.Or), world, frame)


def _chain(m: Machine, operands: list[ast.expr], stops: bool, world: World, frame: Frame) -> Results:
    results: Results = []
    for left, after in expressions.evaluate(m, operands[0], world, frame):
        formula = conditions.truth(left)
        m.describe(formula, operands[0], frame)
        known = after.known(formula)
        if len(operands) == 1 or known is stops:
            results.append((left, after))
        elif known is not None:
            results += _chain(m, operands[1:], stops, after, frame)
        else:
            logged = len(m.log)
            inside, stopped = after.copy(), conditions.assume(formula, stops, after.facts)
            going = conditions.assume(formula, not stops, after.facts)
            if going is None or stopped is None:  # what follows from the facts was not seen above
                after.facts = going or stopped or after.facts
                results += _chain(m, operands[1:], stops, after, frame) if going is not None else [(left, after)]
                continue
            inside.facts = going
            rest = _chain(m, operands[1:], stops, inside, frame)
            if len(rest) == 1 and len(m.log) == logged:
                results.append((_both(left, rest[0][0], stops), after))
            else:
                after.facts = stopped
                results += [(left, after), *rest]
    return results


def _both(left: Value, right: Value, is_or: bool) -> Value:
    """The value of `left or right` (or `and`) where left does not decide by itself."""
    formula = conditions.truth(left)
    if isinstance(formula, bool):
        return (left if formula else right) if is_or else (right if formula else left)
    if isinstance(left, Test) and isinstance(right, Test | Const | Sym):
        join = conditions.either if is_or else conditions.both
        joined = join(formula, conditions.truth(right))
        return Const(joined) if isinstance(joined, bool) else Test(joined)
    return conditions.choice(formula, left, right) if is_or else conditions.choice(formula, right, left)


def compare(m: Machine, node: ast.Compare, world: World, frame: Frame) -> Results:
    results: Results = []
    version = versions.decided(node, frame.module)
    if version is not None:
        return [(Const(version), world)]
    for values, after in expressions.each(m, [node.left, *node.comparators], world, frame):
        formula: Formula = True
        for number, op in enumerate(node.ops):
            left, right = values[number], values[number + 1]
            on_tensor = isinstance(left, Tensor) or isinstance(right, Tensor)
            if on_tensor and not isinstance(op, ast.Is | ast.IsNot | ast.In | ast.NotIn):
                result = operations.operation(m, "eq", (left, right), {}, node, after, frame)
                formula = conditions.both(formula, ask("truth", ("tensor", result.identity)))
                if len(node.ops) == 1:
                    results.append((result, after))
                    break
                continue
            formula = conditions.both(formula, conditions.compare(_COMPARISONS[type(op)], left, right))
        else:
            m.describe(formula, node, frame)
            results.append((Const(formula) if isinstance(formula, bool) else Test(formula), after))
    return results


def if_expression(m: Machine, node: ast.IfExp, world: World, frame: Frame) -> Results:
    """Both values, as a Choice where evaluating them has no effect; else the worlds fork."""
    results: Results = []
    for test, after in expressions.evaluate(m, node.test, world, frame):
        formula = conditions.truth(test)
        m.describe(formula, node.test, frame)
        known = after.known(formula)
        if known is not None:
            results += expressions.evaluate(m, node.body if known else node.orelse, after, frame)
            continue
        yes_world, no_world = after.copy(), after.copy()
        yes_facts = conditions.assume(formula, True, after.facts)
        no_facts = conditions.assume(formula, False, after.facts)
        if yes_facts is None or no_facts is None:  # what follows from the facts was not seen above
            after.facts = yes_facts or no_facts or after.facts
            results += expressions.evaluate(m, node.orelse if yes_facts is None else node.body, after, frame)
            continue
        yes_world.facts, no_world.facts = yes_facts, no_facts
        yes = expressions.evaluate(m, node.body, yes_world, frame)
        no = expressions.evaluate(m, node.orelse, no_world, frame)
        if len(yes) == len(no) == 1:
            met = join(yes[0][1], no[0][1])
            if met is not None:
                results.append((conditions.choice(formula, yes[0][0], no[0][0]), met))
                continue
        results += yes + no
    return results

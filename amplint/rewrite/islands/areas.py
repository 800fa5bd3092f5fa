"""Overlaps of boxes: `log(intersection / union)` is infinite where an area of some 256 by 256 pixels and more overflows
in half precision, and no step is taken any more."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.source.module import Module

_WIDE = frozenset(("float", "double"))


def overlap(module: Module, call: ast.Call) -> bool:
    """Whether a call is the logarithm of a ratio whose divisor is `a + b - c`, a and b being areas: products of sums or
    differences of lengths, or of what these are assigned to."""
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr not in ("log", "log2", "log10"):
        return False
    operand = call.args[0] if call.args else function.value
    return any(
        _union(module, divisor)
        for node in _parts(module, operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        for divisor in _parts(module, node.right)
    )


def _union(module: Module, node: ast.AST) -> bool:
    match node:
        case ast.BinOp(op=ast.Sub(), left=ast.BinOp(op=ast.Add(), left=first, right=second)):
            return all(any(map(_area, _parts(module, one))) for one in (first, second))
    return False


def _area(node: ast.AST) -> bool:
    match node:
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            lengths = all(isinstance(one, ast.BinOp) and isinstance(one.op, ast.Add | ast.Sub) for one in (left, right))
            return lengths and not any(getattr(one, "attr", "") in _WIDE for one in ast.walk(node))
    return False


def _parts(module: Module, value: ast.expr, depth: int = 0) -> Iterator[ast.AST]:
    """The nodes of a value, and of what the function assigns to the names in it."""
    for node in ast.walk(value):
        yield node
        if isinstance(node, ast.Name) and depth < 3:
            for one in ast.walk(module.scope(node)):
                if not isinstance(one, ast.Assign) or any(inner is node for inner in ast.walk(one)):
                    continue
                if any(getattr(target, "id", "") == node.id for target in one.targets):
                    yield from _parts(module, one.value, depth + 1)

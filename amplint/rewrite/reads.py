"""Gradients that are printed, logged or kept between the backward and the step: they are to be what they were."""

from __future__ import annotations

import ast

from amplint.source import events
from amplint.source.module import Module


def looked_at(backward: events.Backward, step: events.Step) -> list[ast.AST]:
    """The places between a backward and its step, in one function, where a gradient is handed to a call."""
    module = step.module
    if backward.frame.code is not step.frame.code or backward.module is not module:
        return []
    first, last = _place(backward.node), _place(step.node)
    return [
        node
        for node in ast.walk(module.function(step.node) or module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "grad" and isinstance(node.ctx, ast.Load)
        if first < _place(node) < last and _is_argument(module, node)
    ]


def _is_argument(module: Module, node: ast.AST) -> bool:
    """Whether an expression, or what a method makes of it, is an argument of a call."""
    inner = node
    for above in module.ancestors(node):
        if isinstance(above, ast.stmt | ast.Compare | ast.BoolOp):
            return False
        if isinstance(above, ast.Call) and inner is not above.func:
            return True
        inner = above
    return False


def _place(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]

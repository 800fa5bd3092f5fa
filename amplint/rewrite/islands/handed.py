"""Functions of a script that it hands to what calls them out of sight (`SVI(likelihood=cross_entropy)`): logarithms in
them that only a vanishing eps keeps from 0 are taken in float32, as what they are given may be half."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.source.module import Module
from amplint.source.tree import stored_names

_ZERO = 2.0**-25  # what float16 rounds to 0
_LOGARITHMS = frozenset(("log", "log2", "log10"))
_WIDE = ("float()", "float32", "double()", "autocast", "softmax")


def handed_logarithms(module: Module) -> tuple[ast.Name, ...]:
    """The parameters in such logarithms."""
    functions = {one.name: one for one in module.tree.body if isinstance(one, ast.FunctionDef)}
    given = {name for call in module.nodes(ast.Call) for name in _given(call)}
    found: list[ast.Name] = []
    for function in (functions[name] for name in functions.keys() & given):
        if any(word in module.rows(function) for word in _WIDE):
            continue
        names = {one.arg for one in function.args.args}
        stored = stored_names(function)
        for node in ast.walk(function):
            operand = _operand(node)
            if operand is not None and any(map(_vanishes, ast.walk(operand))):
                found += [one for one in ast.walk(operand) if isinstance(one, ast.Name) and one.id in names - stored]
    return tuple(sorted(found, key=lambda one: (one.lineno, one.col_offset)))


def _given(call: ast.Call) -> Iterator[str]:
    return (one.id for one in (*call.args, *(k.value for k in call.keywords)) if isinstance(one, ast.Name))


def _operand(node: ast.AST) -> ast.expr | None:
    match node:
        case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id="torch")), args=[operand]) if name in _LOGARITHMS:
            return operand
        case ast.Call(func=ast.Attribute(attr=name, value=operand), args=[], keywords=[]) if name in _LOGARITHMS:
            return operand
    return None


def _vanishes(node: ast.AST) -> bool:
    match node:
        case ast.BinOp(op=ast.Add(), right=ast.Constant(value=float() as number)):
            return 0 < number <= _ZERO
    return False

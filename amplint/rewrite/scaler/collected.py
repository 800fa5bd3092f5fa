"""Optimizers that are kept in a list or a dict: what loops over it, where it has been filled, and other names of it."""

from __future__ import annotations

import ast

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.regions.derivation import path
from amplint.source.module import FunctionNode, Module

_FILLS = frozenset(("append", "extend", "update", "setdefault", "insert"))


def looped(module: Module, use: ast.AST, text: str) -> tuple[ast.For, list[str]] | None:
    """The loop that binds a name from a collection, and what that is called: `for net, optimizer in zip(nets,
    optimizers)`, `for optimizer in optimizers.values()`; of `for optimizer in (a, b)`, all of them."""
    for loop in module.ancestors(use):
        if isinstance(loop, FunctionNode):
            break
        if not isinstance(loop, ast.For):
            continue
        target, over = loop.target, loop.iter
        while True:
            match target, over:
                case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Name(id="enumerate"), args=[collection]):
                    target, over = inner, collection
                case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Attribute(value=collection, attr="items"), args=[]):
                    target, over = inner, collection
                case ast.Name(), ast.Call(func=ast.Attribute(value=collection, attr="values"), args=[]):
                    over = collection
                case ast.Tuple(elts=parts), ast.Call(func=ast.Name(id="zip"), args=collections) if len(parts) == len(
                    collections
                ) and text in (names := [ast.unparse(part) for part in parts]):
                    target, over = parts[names.index(text)], collections[names.index(text)]
                case ast.Name(id=name), ast.Name() | ast.Attribute() if name == text:
                    return loop, [ast.unparse(over)]
                case ast.Name(id=name), ast.Tuple(elts=parts) | ast.List(elts=parts) if name == text and parts:
                    if all(isinstance(part, ast.Name | ast.Attribute) for part in parts):
                        return loop, [ast.unparse(part) for part in parts]
                    break
                case _:
                    break
    return None


def filled(module: Module, statement: ast.stmt, text: str) -> ast.stmt:
    """The statement behind which a collection that begins empty has its optimizers: the last of its block that puts
    something into it."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or not _is_empty(statement.value):
        return statement
    block = suite_of(module, statement)
    found: ast.stmt = statement
    for one in block[block.index(statement) + 1 :]:
        if not isinstance(one, FunctionNode | ast.ClassDef) and any(_puts(node, text) for node in ast.walk(one)):
            found = one
    return found


def _is_empty(value: ast.expr | None) -> bool:
    match value:
        case ast.List(elts=[]) | ast.Dict(keys=[]) | ast.Call(args=[], keywords=[]):
            return True
    return False


def _puts(node: ast.AST, text: str) -> bool:
    match node:
        case ast.Subscript(ctx=ast.Store(), value=value):
            return path(value) == text
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _FILLS:
            return path(value) == text
    return False


def alias(statement: ast.stmt, name: str) -> str:
    """What a local is another name of: `optimizer = self.optimizer`, `nets, optims = self.nets, self.optims`; ""
    where it is made here."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
            return _plain(value)
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
            for one, value in zip(names, values, strict=True):
                if isinstance(one, ast.Name) and one.id == name:
                    return _plain(value)
    return ""


def _plain(value: ast.expr) -> str:
    if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant):
        value = value.value
    return ast.unparse(value) if isinstance(value, ast.Name | ast.Attribute) else ""

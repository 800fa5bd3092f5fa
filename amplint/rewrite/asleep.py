"""What training does only where a constant at the top of its script is set otherwise: it must be right then, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amplint.rewrite.scaler.gradients import CLIPS
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.roles import path_of
from amplint.source.module import Module
from amplint.source.tree import names_in
from amplint.source.walk import walk


def asleep(reading: Reading) -> frozenset[str]:
    """The constants at the top of a script that its conditions ask for (`grad_clip = None`), where a branch that no
    world took clips gradients, runs a backward or steps an optimizer."""
    if not any(
        _trains(reading, module, node.body if ways == {False} else node.orelse)
        for node, (module, ways) in reading.machine.ways.items()
        if len(ways) == 1
    ):
        return frozenset()
    asked = names_in(*_tests(reading.module.tree))
    return frozenset(name for name in _constants(reading.module.tree) if name in asked)


def _trains(reading: Reading, module: Module, body: Sequence[ast.stmt]) -> bool:
    for node in (inner for statement in body for inner in walk(statement)):
        match node:
            case ast.Call(func=ast.Attribute(attr="backward")):
                return True
            case ast.Call(func=ast.Attribute(attr="step", value=receiver)):
                roles = reading.machine.roles(module, module.scope(node))
                if roles.get(path_of(receiver) or "", "").startswith("optimizer"):
                    return True
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if CLIPS.search(name):
                return True
    return False


def _tests(tree: ast.AST) -> Iterator[ast.expr]:
    for node in walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node.test


def _constants(tree: ast.Module) -> Iterator[str]:
    """None, numbers and flags: a text is no switch."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=None | bool() | int() | float())):
                yield name

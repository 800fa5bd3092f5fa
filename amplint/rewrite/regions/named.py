"""Forwards that are an argument of a loss in float32: they move to a line of their own, under autocast."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from typing import NamedTuple

from amplint.rewrite.islands.sigmoids import REASON
from amplint.rewrite.refusals.refused import Refused
from amplint.source.module import Module
from amplint.source.tree import names_in, place_of, stored_names

_FLOWS = ast.Call | ast.BinOp | ast.UnaryOp | ast.keyword | ast.Attribute | ast.Tuple | ast.List


class Named(NamedTuple):
    """A forward that gets a name, and the statement that it stood in."""

    name: str
    call: ast.Call
    statement: ast.stmt

    def line(self, module: Module) -> str:
        text = module.source(self.call)
        return f"{self.name} = {ast.unparse(self.call) if chr(10) in text else text}"


def named(module: Module, statement: ast.stmt, forwards: Collection[ast.AST], taken: set[str]) -> list[Named]:
    """The outermost forwards of a statement, in the order in which they run. Raises Refused where the statement need
    not run them, or not once, or might change what they are given before."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr):
        raise Refused(REASON, "name what the model returns on a line of its own first")
    found = [
        node
        for node in ast.walk(statement)
        if node in forwards and not any(above in forwards for above in _inside(module, node, statement))
    ]
    calls = [node for node in found if isinstance(node, ast.Call)]
    for call in calls:
        if not all(isinstance(above, _FLOWS) for above in _inside(module, call, statement)):
            raise Refused(REASON, "name what the model returns on a line of its own first")
    calls.sort(key=place_of)
    made = []
    for call in calls:
        name = _name(statement, taken, len(calls) > 1)
        taken.add(name)
        made.append(Named(name, call, statement))
    return made


def _inside(module: Module, node: ast.AST, statement: ast.stmt) -> list[ast.AST]:
    """What stands around a node, up to its statement."""
    found: list[ast.AST] = []
    for above in module.ancestors(node):
        if above is statement:
            return found
        found.append(above)
    return found


def _name(statement: ast.stmt, taken: set[str], several: bool) -> str:
    """`real_loss` → `real_output`."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    base = getattr(target, "id", getattr(target, "attr", "loss"))
    stem = base.replace("loss", "output") if "loss" in base else f"{base}_output"
    names = [f"{stem}_{index}" for index in range(1, 100)]
    return next(name for name in (names if several else [stem, *names]) if name not in taken)


def taken_in(tree: ast.AST) -> set[str]:
    """The names that a new one must not have: also those of parameters and arguments."""
    return {getattr(node, "id", getattr(node, "arg", "")) for node in ast.walk(tree)}


def may_move(between: Sequence[ast.stmt], call: ast.Call) -> bool:
    """Whether a call gives the same before some statements as behind them: they bind nothing that it reads."""
    read = names_in(call)
    stored = stored_names(*between)
    return not read & stored

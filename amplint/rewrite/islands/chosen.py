"""Losses that a script chooses by a name: binary cross entropy on probabilities among them, which autocast refuses."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from amplint.rewrite.refusals.refused import Refused
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module

PROBABILITIES = frozenset(("torch.nn.functional.binary_cross_entropy", "torch.nn.BCELoss"))


def check_chosen(reading: Reading, code: Iterable[tuple[Module, ast.AST]]) -> None:
    """Raise Refused where some code has such a loss for a value, and no call of one was seen: `losses = {"bce":
    F.binary_cross_entropy}`. One that is called where it is named is seen more closely."""
    if any(isinstance(one, events.Operation) and one.name == "binary_cross_entropy" for one in reading.events):
        return
    for module, part in code:
        for node in ast.walk(part):
            if _is_value(module, node):
                place = f"{module.path}:{module.range(node).start.row}"
                raise Refused(
                    f"{place} may choose binary cross entropy on probabilities, which CUDA autocast refuses",
                    "use binary_cross_entropy_with_logits on logits there first",
                )


def _is_value(module: Module, node: ast.AST) -> bool:
    if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return False
    if not module.dotted(node) & PROBABILITIES:
        return False
    match module.parents.get(node):
        case ast.Call(func=function) if function is node or getattr(function, "id", "") == "isinstance":
            return False
        case ast.arg() | ast.AnnAssign():
            return False
    return True

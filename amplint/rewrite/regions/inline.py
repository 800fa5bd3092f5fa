"""Losses that are computed where their backward is called: `criterion(model(x), y).backward()`.

They get a line of their own, under autocast, and a name.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.regions.lifts import Through, lifts_of, nodes_of, shown
from amplint.rewrite.regions.named import Named, taken_in
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.symbols import fresh
from amplint.source.tree import place_of

REASON = "the loss is computed where its backward is called"
ADVICE = "name the loss on a line of its own first"
NAME = "loss"


def is_inline(reading: Reading, loss: ast.expr | None) -> bool:
    """Whether what a backward is called on computes something that belongs under autocast, rather than naming it."""
    forwards = lifts_of(reading).forwards
    return loss is not None and any(
        node in forwards or (isinstance(node, ast.Call) and not _keeps(node)) for node in ast.walk(loss)
    )


def _receiver(backward: events.Backward) -> ast.expr | None:
    match backward.node:
        case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Attribute(attr="scale"), args=[loss]))) if (
            backward.scaler is not None
        ):
            return loss
        case ast.Call(func=ast.Attribute(value=receiver)):
            return receiver
    return None


def _keeps(call: ast.Call) -> bool:
    """`loss.mean()`, `loss / len(batch)`: what is no forward, keeps the loss' dtype, or counts."""
    match call.func:
        case ast.Attribute(attr="mean" | "numel"):
            return not call.args
        case ast.Attribute(attr="size" | "div"):
            return True
        case ast.Name(id="len" | "float"):
            return True
    return False


def runs_forward(reading: Reading, backward: events.Backward) -> bool:
    """Whether the model itself runs where backward is called."""
    forwards = lifts_of(reading).forwards
    return any(node in forwards for node in ast.walk(backward.node))


def named_loss(reading: Reading, backward: events.Backward) -> Named:
    """The line that the loss gets. Raises Refused where it cannot have one."""
    module, receiver = reading.module, _receiver(backward)
    statement = module.statement(backward.node)
    scope = module.scope(statement)
    alone = isinstance(statement, ast.Expr) and statement.value is backward.node
    if not isinstance(receiver, ast.Call) or not alone or _strict(reading, statement):
        raise Refused(REASON, ADVICE)
    name = _last_used(module, receiver, statement)
    if not name and NAME in taken_in(scope):
        raise Refused(REASON, ADVICE)
    return Named(name or NAME, receiver, statement)


def _root(receiver: ast.expr) -> str:
    """The name that a chain of methods begins with: `loss` of `loss.sum().mul(2)`."""
    node: ast.AST = receiver
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _last_used(module: Module, receiver: ast.expr, statement: ast.stmt) -> str:
    """The name of the loss that a backward sums or scales, if its block has bound it above, and nothing reads it below
    or in the next round: it can have the new value."""
    name, block = _root(receiver), suite_of(module, statement)
    above = [node for one in block[: block.index(statement)] for node in ast.walk(one)]
    bound = [one for one in above if isinstance(one, ast.Name) and one.id == name and isinstance(one.ctx, ast.Store)]
    if not bound:
        return ""
    first, last = min(one.lineno for one in bound), statement.end_lineno or 0
    every = [one for one in ast.walk(module.scope(statement)) if isinstance(one, ast.Name) and one.id == name]
    return name if all(first <= one.lineno <= last for one in every if isinstance(one.ctx, ast.Load)) else ""


def _strict(reading: Reading, statement: ast.stmt) -> bool:
    """Whether something in a statement is not for half precision."""
    inside = set(ast.walk(statement))
    return any(
        isinstance(event, events.Operation)
        and event.name in ("binary_cross_entropy", "grad")
        and any(node in inside for node in nodes_of(event))
        for event in reading.events
    )


def lines_for(reading: Reading, backwards: Sequence[events.Backward]) -> list[Named]:
    """The lines for those of some backwards that need one, in the order of the text."""
    found = {
        one.node: named_loss(reading, one)
        for one in backwards
        if one.scaler is None and is_inline(reading, _receiver(one))
    }
    return sorted(found.values(), key=lambda one: place_of(one.statement))


def forward_in(reading: Reading, statement: ast.stmt, backwards: Sequence[events.Backward]) -> events.Forward:
    """The forward of a statement, if need be of the model that some method of it runs."""
    forwards = lifts_of(reading).forwards
    for node in ast.walk(statement):
        if node in forwards:
            return shown(forwards[node][0], node)
    backward = next(one for one in backwards if reading.module.statement(one.node) is statement)
    return Through(backward.node, backward.frame, (), (), {}, fresh("a model"))


def follows(module: Module, statement: ast.stmt, region: Sequence[ast.stmt]) -> bool:
    """Whether a statement stands right behind a region."""
    block = suite_of(module, statement)
    index = block.index(statement)
    return bool(region) and index > 0 and block[index - 1] is region[-1]

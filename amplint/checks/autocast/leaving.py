"""Whether a statement may leave autocast: it may if nothing in it needed the casts but what the fix mends."""

from __future__ import annotations

import ast
from collections.abc import Collection

from amplint.checks.registry import Script
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import Module
from amplint.source.values import Parameter, Tensor, Value
from amplint.source.walk import walk

_PLAIN = (
    tensors.VIEWS
    | tensors.CASTS.keys()
    | tensors.NUMBERS
    | tensors.BOOLEAN
    | tensors.INTEGER
    | frozenset("to type type_as detach append is_floating_point new_full new_ones new_tensor new_zeros".split())
)
_BUILTINS = frozenset(
    "abs enumerate float getattr int isinstance len list max min print range round str tuple zip".split()
)
_MADE = frozenset(
    (
        "arange empty empty_like eye finfo full full_like iinfo linspace ones ones_like rand rand_like randn "
        "randn_like tensor as_tensor zeros zeros_like device"
    ).split()
)


def may_leave(script: Script, module: Module, statement: ast.stmt, mended: Collection[ast.AST]) -> bool:
    """Whether a statement runs as it did where autocast is off: with the casts gone, what came out of autocast in half
    precision may not meet float32 weights, nor go into a function of which nothing is known."""
    operations: dict[ast.AST | None, list[events.Operation]] = {}
    for event in script.events(events.Operation):
        operations.setdefault(event.node, []).append(event)
    forwards: dict[ast.AST | None, list[events.Forward]] = {}
    for forward in script.events(events.Forward):
        forwards.setdefault(forward.node, []).append(forward)

    def runs_on(node: ast.AST) -> bool:
        if node in mended:
            return True
        if node in operations:
            return all(_needs_no_cast(event, mended) for event in operations[node])
        if node in forwards:
            return all(_is_full(value, mended) for one in forwards[node] for value in one.given)
        return isinstance(node, ast.Call) and _is_known(module, node)

    cast = (node for node in walk(statement) if isinstance(node, ast.Call) or _multiplies(node))
    return all(runs_on(node) for node in cast)


def _multiplies(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult)


def _needs_no_cast(event: events.Operation, mended: Collection[ast.AST]) -> bool:
    if tensors.policy().get(event.name) not in ("lower", "promote", "banned"):
        return True
    return all(_is_full(value, mended) for value in event.args)


def _is_full(value: Value, mended: Collection[ast.AST]) -> bool:
    """Whether an operand is float32 without autocast, as parameters are."""
    match value:
        case Tensor():
            return value.dtype == "float32" or value.node in mended or (not value.dtype and value.region is None)
        case Parameter():
            return True
    return not any(True for _ in tensors.tensors_in((value,)))


def _is_known(module: Module, call: ast.Call) -> bool:
    """Whether a call of which no event tells is one that autocast does not change."""
    match call.func:
        case ast.Name(id=name) if name in _BUILTINS:
            return True
        case ast.Attribute(attr=name) if name in _PLAIN:
            return True
    names = module.dotted(call.func) or {
        f"torch.Tensor.{call.func.attr}" if isinstance(call.func, ast.Attribute) else ""
    }
    return all(_is_neutral(name) for name in names)


def _is_neutral(name: str) -> bool:
    if name.startswith(("math.", "numpy.")):
        return True
    if name.startswith("torch.") and name.rpartition(".")[2] in _MADE:
        return True
    op = tensors.op_of(name)
    return bool(op) and tensors.policy().get(op) not in ("lower", "promote", "banned")

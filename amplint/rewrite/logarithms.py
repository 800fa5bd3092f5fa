"""Logarithms of probabilities: a sigmoid in half precision is 0 or 1 too soon, and the loss infinite there."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from amplint.rewrite.derivation import Region, path
from amplint.rewrite.lifts import lifts_of
from amplint.rewrite.refused import Refused
from amplint.source.interpret.entries import Reading

_BOUNDS = frozenset(("clamp", "clamp_", "clip", "softmax", "exp", "float", "sum", "mean", "norm", "size", "var", "std"))


def logarithms(reading: Reading, regions: Iterable[Region]) -> None:
    """Raise Refused where a region takes the logarithm of what a model that ends in a sigmoid returns."""
    trees = [module.tree for module in reading.machine.loaded]
    if not any(getattr(node, "attr", "") in ("Sigmoid", "sigmoid") for tree in trees for node in ast.walk(tree)):
        return
    forwards = lifts_of(reading).forwards
    for region in regions:
        outputs = {
            path(target)
            for one in region
            for node in ast.walk(one)
            if isinstance(node, ast.Assign) and any(inner in forwards for inner in ast.walk(node.value))
            for target in node.targets
        } - {""}
        for node in (inner for one in region for inner in ast.walk(one)):
            operand = _logarithm(node)
            if operand is None:
                continue
            names = {path(inner) for inner in ast.walk(operand) if isinstance(inner, ast.Name | ast.Attribute)}
            if names & outputs or any(inner in forwards for inner in ast.walk(operand)):
                raise Refused(
                    "it takes the logarithm of a sigmoid, which is 0 or 1 too soon in half precision",
                    "use logsigmoid or binary_cross_entropy_with_logits on what the sigmoid is given",
                )


def _logarithm(node: ast.AST) -> ast.expr | None:
    """The operand of `torch.log(p)`, `(1 - p).log()`, where nothing keeps it from 0."""
    match node:
        case ast.Call(func=ast.Attribute(attr="log" | "log2" | "log10", value=ast.Name(id="torch")), args=[operand]):
            pass
        case ast.Call(func=ast.Attribute(attr="log" | "log2" | "log10", value=operand), args=[], keywords=[]):
            pass
        case _:
            return None
    for inner in ast.walk(operand):
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add):
            return None  # an eps
        if isinstance(inner, ast.Attribute) and inner.attr in _BOUNDS:
            return None
    return operand

"""Family 1, loss scaling by hand: a constant factor on the loss, and its inverse on the gradients."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule, same_function, text
from amplint.checks.scaler.nonfinite import is_gradient
from amplint.findings import Finding, Fix
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import called_name, last_name
from amplint.source.walk import walk

_HALF = re.compile(r"\.half\(\)|float16|fp16|autocast|HalfTensor")
_SCALE = re.compile(r"scale", re.IGNORECASE)
_NOT_OF_LOSS = re.compile(r"lr|grad_scale|world|weight|logit|guidance", re.IGNORECASE)
_LOOKS_FOR_INF = re.compile(r"isinf|isnan|isfinite|overflow|inf\b|has_nan|finite", re.IGNORECASE)


@rule("AMP128")
def hand_rolled_loss_scaling(script: Script) -> Iterator[Finding]:
    """A loss times a constant, gradients divided by it, and nothing that looks for an overflow."""
    module = script.module
    if not _HALF.search(module.text) or ".grad" not in module.text:
        return
    divisions = [(node, by) for node in module.all_nodes if (by := _divides(node)) is not None]
    if not divisions:
        return
    for node in module.all_nodes:
        match node:
            case ast.Call(func=ast.Attribute(value=loss, attr="backward")):
                factor = _factor(module, loss, node)
        if not isinstance(node, ast.Call) or factor is None:
            factor = None
            continue
        scope = module.scope(node)
        matching = [d for d, by in divisions if _same(by, factor) and _reaches(module, scope, d)]
        if matching and not _LOOKS_FOR_INF.search(module.source(scope) if scope is not module.tree else module.text):
            yield found_at(
                "AMP128",
                module,
                node,
                f"the loss is scaled by hand, always by {text(module, factor)}: nothing skips the step when a gradient "
                "overflows, and inf or nan goes into the weights",
                evidence=[(module, node, "scaled here"), (module, matching[0], "and divided here, whatever is in it")],
                help="use torch.amp.GradScaler: it looks for inf, skips the step, and adapts the scale",
                fix=_fix(script, node, matching[0]),
            )
        factor = None


def _divides(node: ast.AST) -> ast.expr | None:
    """What a statement divides gradients by."""
    match node:
        case ast.Call(func=ast.Attribute(value=owner, attr="div_"), args=[by]) if is_gradient(owner):
            return by
        case ast.Call(func=ast.Attribute(value=owner, attr="mul_"), args=[by]) if is_gradient(owner):
            return _inverted(by)
        case ast.AugAssign(target=owner, op=ast.Div(), value=by) if is_gradient(owner):
            return by
        case ast.AugAssign(target=owner, op=ast.Mult(), value=by) if is_gradient(owner):
            return _inverted(by)
        case ast.Assign(targets=[owner], value=ast.BinOp(left=left, op=ast.Div(), right=by)):
            return by if is_gradient(owner) and is_gradient(left) else None
    return None


def _inverted(node: ast.expr) -> ast.expr | None:
    """`k` of `1 / k`."""
    match node:
        case ast.BinOp(left=ast.Constant(value=1), op=ast.Div(), right=by):
            return by
    return None


def _factor(module: Module, loss: ast.expr, backward: ast.AST) -> ast.expr | None:
    """What a loss is multiplied by before its backward, if that looks like a loss scale."""
    match loss:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return next((side for side in (right, left) if _is_scale(side)), None)
        case ast.Name(id=name):
            scope = module.scope(backward)
            before: list[tuple[int, ast.expr]] = []
            for node in walk(scope):
                match node:
                    case ast.Assign(targets=[ast.Name(id=one)], value=value) if one == name:
                        before.append((node.lineno, value))
                    case ast.AugAssign(target=ast.Name(id=one), op=ast.Mult(), value=value) if one == name:
                        before.append((node.lineno, ast.BinOp(loss, ast.Mult(), value)))
            earlier = [one for one in before if one[0] < backward.lineno]  # type: ignore[attr-defined]
            latest = max(earlier, key=lambda one: one[0])[1] if earlier else None
            return _factor(module, latest, backward) if isinstance(latest, ast.BinOp) else None
    return None


def _is_scale(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number >= 8
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return bool(_SCALE.search(name)) and not _NOT_OF_LOSS.search(name)
    return False


def _same(one: ast.expr, other: ast.expr) -> bool:
    if isinstance(one, ast.Constant) and isinstance(other, ast.Constant):
        return bool(one.value == other.value)
    last = [last_name(node) for node in (one, other)]
    return ast.dump(one) == ast.dump(other) or (bool(last[0]) and last[0] == last[1])


def _reaches(module: Module, scope: ast.AST, division: ast.AST) -> bool:
    """Whether a function divides, or calls the function that does."""
    home = module.scope(division)
    if home is scope:
        return True
    name = getattr(home, "name", None)
    return any(isinstance(node, ast.Call) and called_name(node) == name for node in walk(scope))


def _fix(script: Script, backward: ast.Call, division: ast.AST) -> Fix | None:
    """A scaler instead, where parameters are in float32 (autocast) and all stands in one function."""
    module = script.module
    if "autocast" not in module.text:
        return None
    steps = [
        s
        for s in script.events(events.Step)
        if s.module is module and module.function(s.node) is module.function(backward)
    ]
    nodes = {step.node for step in steps}
    create = next((c for c in script.events(events.Create) if steps and c.value == steps[0].optimizer), None)
    if len(nodes) != 1 or create is None or create.module is not module or not same_function(create, steps[0]):
        return None
    return fixes.scaler_instead(module, create.node, backward, division, steps[0].node)

"""Family 1, the loss itself in float16: its gradient starts as the scale, which float16 does not hold."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.autocast.common import is_library_loss
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.checks.scaler.protocol import is_disabled
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, names_in
from amplint.source.values import KNOWN, Const, Tensor
from amplint.source.walk import walk

_REDUCTIONS = frozenset(("mean", "nanmean", "amax", "amin", "var", "std"))  # in half where their operand is
_SAME = frozenset(("scale", "neg", "float", "to", "view", "squeeze", "reshape"))
_DEEP = 24
_LOSS = re.compile(r"loss|criterion", re.IGNORECASE)


@rule("AMP127")
def half_loss(script: Script) -> Iterator[Finding]:
    """A loss that is reduced in float16 by hand inside the region: autocast does not raise `mean` to float32."""
    for backward in script.events(events.Backward):
        if backward.scaler is None or is_disabled(backward.scaler) or not isinstance(backward.loss, Tensor):
            continue
        for part in _halves(backward.loss):
            node, module = part.node, backward.module
            if node is None or not isinstance(node, ast.Call) or node not in module.parents:
                continue
            yield found(
                "AMP127",
                backward,
                "this loss is float16: its gradient begins as the loss scale (65536 at first), which float16 does not "
                "hold, so the first step and one after every growth of the scale are skipped",
                node=node,
                evidence=[(backward, "the gradient begins here, as large as the scale")],
                help="cast what is reduced: .float() before the mean, not after it",
                fix=fixes.reduce_in_float32(module, node),
            )


def _halves(loss: Tensor, factor: float = 1.0, depth: int = 0) -> Iterator[Tensor]:
    """The float16 reductions that a loss is a sum of, with a weight of at least 1."""
    if depth > _DEEP:
        return
    parents = [value for value in loss.parents if isinstance(value, Tensor)]
    match loss.made:
        case "add" | "sub" | "":
            for parent in parents if loss.parents else ():
                yield from _halves(parent, factor, depth + 1)
        case "mul" | "div" if len(parents) == 1:
            number = next((v.value for v in loss.parents if isinstance(v, Const)), None)
            if isinstance(number, int | float) and number:
                weight = abs(number) if loss.made == "mul" else 1 / abs(number)
                yield from _halves(parents[0], factor * weight, depth + 1)
        case made if made in _SAME:
            for parent in parents[:1]:
                yield from _halves(parent, factor, depth + 1)
        case made if made in _REDUCTIONS:
            region = loss.region
            known = loss.dtype == "float16" and loss.trust == KNOWN and region is not None and not region.assumed
            if known and factor >= 1:
                yield loss


# -- losses of models that were cast to half --------------------------------------------------------------------------


@rule("AMP127")
def loss_of_a_half_model(script: Script) -> Iterator[Finding]:
    """A note: the loss is computed in float16, on what a model returned that was given float16."""
    module = script.module
    if ".half()" not in module.text:
        return
    for function in module.all_nodes:
        if not isinstance(function, ast.FunctionDef):
            continue
        halves = {name for name, value in _assigned(function) if _casts_to_half(value)}
        outputs = {
            name
            for name, value in _assigned(function)
            if halves
            for call in [value]
            if isinstance(call, ast.Call) and not _LOSS.search(called_name(call)) and _given(call, halves)
        }
        floats = {name for name, value in _assigned(function) if _is_cast(value)}
        for call in walk(function) if outputs else ():
            if (
                isinstance(call, ast.Call)
                and _LOSS.search(called_name(call))
                and _given(call, outputs - floats - halves)
            ):
                if any(isinstance(one, ast.With) and "autocast" in module.source(one.items[0].context_expr)
                       for one in module.ancestors(call)):  # fmt: skip
                    continue
                yield found_at(
                    "AMP127",
                    module,
                    call,
                    "this loss is computed in float16, on outputs of a model that was given float16: three digits are "
                    "left, and a sum above 65504 is inf",
                    severity=Severity.NOTE,
                    help="compute the loss on outputs.float()",
                )


def _assigned(function: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    """The names that a function assigns, and what to."""
    return [
        (name.id, node.value)
        for node in walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        for name in ([target] if not isinstance(target, ast.Tuple) else target.elts)
        if isinstance(name, ast.Name)
    ]


def _casts_to_half(value: ast.expr) -> bool:
    sides = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
    return any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "half"
        and not call.args
        for side in sides
        for call in walk(side)
    )


def _given(call: ast.Call, names: set[str]) -> bool:
    """Whether the first argument of a call is one of these names, as it is."""
    return bool(call.args) and isinstance(call.args[0], ast.Name) and call.args[0].id in names


@rule("AMP127")
def one_loss_of_several(script: Script) -> Iterator[Finding]:
    """A note: the same function is given .float() everywhere else in this function, here it is not."""
    module = script.module
    if ".float()" not in module.text or "backward" not in module.text:
        return
    groups: dict[tuple[object, str], list[ast.Call]] = {}
    for node in module.all_nodes:
        if isinstance(node, ast.Call) and len(node.args) >= 2 and is_library_loss(module, node):
            groups.setdefault((module.function(node), text(module, node.func)), []).append(node)
    for (function, _), calls in groups.items():
        cast = [call for call in calls if all(map(_is_cast, call.args[:2]))]
        plain = [call for call in calls if not any(map(_is_cast, call.args[:2]))]
        if not cast or not isinstance(function, FunctionNode | None):
            continue
        for call in plain:
            if _alike(call, cast[0]) and not _made_float(module, call):
                yield found_at(
                    "AMP127",
                    module,
                    call,
                    f"{text(module, call.func)} is given .float() elsewhere in this function, here it is not: where "
                    "these are in half precision, so is the loss",
                    severity=Severity.NOTE,
                    evidence=[(module, cast[0], "here both are cast")],
                    help="cast both operands with .float()",
                )


def _is_cast(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="float"), args=[]):
            return True
    return False


def _alike(one: ast.Call, other: ast.Call) -> bool:
    """Whether two calls name the same kind of thing: `noise_pred` and `noise_pred_prior`."""
    first, second = (_stem(call.args[0]) for call in (one, other))
    return bool(first) and first == second


def _stem(node: ast.AST) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return re.sub(r"_?(prior|instance|chunk|\d)", "", node.id) if isinstance(node, ast.Name) else ""


def _made_float(module: Module, call: ast.Call) -> bool:
    """Whether an operand is assigned with a cast in the function."""
    names = names_in(*call.args[:2])
    scope = module.scope(call)
    return any(
        isinstance(node, ast.Assign)
        and ".float()" in module.source(node)
        and any(isinstance(one, ast.Name) and one.id in names for target in node.targets for one in walk(target))
        for node in walk(scope)
    )

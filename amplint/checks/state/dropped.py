"""Casts of parameters whose result nobody keeps: a module casts in place, a tensor gives a copy."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source.module import Module
from amplint.source.tree import called_name, calls_in
from amplint.source.walk import walk

_CASTS = frozenset(("float", "half", "bfloat16", "double"))
_DTYPES = frozenset(f"torch.{one}" for one in ("float32", "float", "float16", "half", "bfloat16", "float64", "double"))
_PARAMETERS = frozenset(("parameters", "named_parameters"))


@rule("AMP301")
def cast_that_is_dropped(script: Script) -> Iterator[Finding]:
    """A loop over a model's parameters casts each of them, and keeps none of the copies."""
    module = script.module
    if "parameters()" not in module.text:
        return
    for loop in module.nodes(ast.For):
        name = _last_name(loop.target)
        if not name or not _over_parameters(module, loop.iter) or _keeps(module, loop, name):
            continue
        for node in walk(loop):
            match node:
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=of), attr=method)) as call):
                    if of != name or not (method in _CASTS or (method == "to" and _names_dtype(module, call))):
                        continue
                    yield found_at(
                        "AMP301",
                        module,
                        node,
                        f"{text(module, call)} gives a copy, which is dropped: the parameter keeps its dtype",
                        severity=Severity.WARNING,
                        help=f"cast the module, which does it in place, or write {name}.data = "
                        f"{name}.data{text(module, call).removeprefix(name)}",
                    )


def _last_name(target: ast.expr) -> str:
    """The loop's parameter: `p`, or the second of `name, p`."""
    if isinstance(target, ast.Tuple) and target.elts:
        target = target.elts[-1]
    return target.id if isinstance(target, ast.Name) else ""


def _over_parameters(module: Module, what: ast.expr) -> bool:
    """Whether a loop is over parameters of a model, or over a list that the function has just made of them."""
    if isinstance(what, ast.Call):
        return called_name(what) in _PARAMETERS
    if not isinstance(what, ast.Name):
        return False
    made = [
        one.value
        for one in walk(module.scope(what))
        if isinstance(one, ast.Assign) and any(isinstance(t, ast.Name) and t.id == what.id for t in one.targets)
    ]
    return len(made) == 1 and _lists_parameters(made[0])


def _lists_parameters(value: ast.expr) -> bool:
    match value:
        case ast.ListComp(elt=ast.Name(id=kept), generators=[one]):
            return kept == _last_name(one.target) and any(called_name(c) in _PARAMETERS for c in calls_in(one.iter))
        case ast.Call(func=ast.Name(id="list"), args=[ast.Call() as call]):
            return called_name(call) == "parameters"
    return False


def _names_dtype(module: Module, call: ast.Call) -> bool:
    """Whether `to` is given a dtype that is written out."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "dtype")]
    return any(module.dotted(one) & _DTYPES for one in given if isinstance(one, ast.Attribute | ast.Name))


def _keeps(module: Module, loop: ast.For, name: str) -> bool:
    """Whether the loop casts the parameter in another way, too: `p.data = p.data.float()`, or by its name."""
    for node in walk(loop):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=of), attr="data")]) if of == name:
                return True
            case ast.Call(func=ast.Name(id="setattr")):
                return True
            case ast.Name(id=of, ctx=ast.Store()) if of == name and node not in set(walk(loop.target)):
                return True
    return False

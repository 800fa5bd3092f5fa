"""Fixes of family 1: flags that switch the scaler on."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt, bound_before, surely_bound
from amplint.source.module import Module
from amplint.source.tree import stored_names
from amplint.source.walk import walk

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE


def enable_as(module: Module, create: ast.AST, autocast: ast.AST) -> Fix | None:
    """`GradScaler()` → `GradScaler(enabled=args.amp)`, the flag that the autocast is given, where that can be read."""
    given = _argument(module, autocast, "enabled")
    if given is None or not isinstance(given, ast.Name | ast.Attribute) or not _reads_alike(module, given, create):
        return None
    return _enabled_when(module, create, module.source(given), SAFE)


def only_for_float16(module: Module, create: ast.AST, autocast: ast.AST | None, always: bool) -> Fix | None:
    """`GradScaler()` → `GradScaler(enabled=dtype == torch.float16)`; off where the region is bfloat16 in every run."""
    if always:
        return _enabled_when(module, create, "False", UNSAFE)
    given = None if autocast is None else _argument(module, autocast, "dtype")
    torch = edits.binding_of(module, "torch", at=module.statement(create))
    if not isinstance(given, ast.Name | ast.Attribute) or not _reads_alike(module, given, create) or torch is None:
        return None
    return _enabled_when(module, create, f"{module.source(given)} == {torch}.float16", UNSAFE)


def _enabled_when(module: Module, create: ast.AST, condition: str, applicability: Applicability) -> Fix | None:
    if not isinstance(create, ast.Call) or not any(
        name.rpartition(".")[2] == "GradScaler" for name in module.dotted(create.func)
    ):
        return None
    if any(keyword.arg in (None, "enabled") for keyword in create.keywords):
        return None
    named = [keyword.value for keyword in create.keywords if keyword.arg == "init_scale"]
    if any(isinstance(value, ast.Name | ast.Attribute) for value in (*create.args, *named)):
        return None  # it may be the switch (AMP602)
    argument = f"enabled={condition}"
    return attempt(f"pass {argument}", applicability, lambda: edits.add_argument(module, create, argument))


def _argument(module: Module, call: ast.AST, name: str) -> ast.expr | None:
    """An argument of an autocast, by its name (torch.cuda.amp.autocast takes `enabled` first)."""
    if not isinstance(call, ast.Call):
        return None
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    old = any("cuda.amp" in one for one in module.dotted(call.func))
    return call.args[0] if name == "enabled" and old and call.args else None


def _reads_alike(module: Module, expression: ast.expr, create: ast.AST) -> bool:
    """Whether an expression means at the scaler's constructor what it means where it stands: in one function, in one
    class (a field that is set before), or a name of the module. In another file it may mean another thing."""
    if expression not in module.parents:
        return False
    source = module.source(expression)
    function, other = module.function(create), module.function(expression)
    root = source.partition(".")[0]
    if function is other:
        return bound_before(module, source, create) and surely_bound(module, source, create)
    if root == "self" and module.class_of(create) is module.class_of(expression) is not None:
        stores = [
            node.lineno
            for node in walk(function or module.tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and module.source(node) == source
        ]
        return bool(stores) and max(stores) < create.lineno  # type: ignore[attr-defined]
    local = {node.arg for node in walk(other) if isinstance(node, ast.arg)} if other is not None else set()
    local |= stored_names(other or ast.Module([], []))
    return (
        function is None
        and root not in local
        and bound_before(module, source, create)
        and surely_bound(module, source, create)
    )

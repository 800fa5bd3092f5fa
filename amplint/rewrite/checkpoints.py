"""Checkpoints: the scaler's state is saved where the optimizer's is, and restored where the optimizer's is."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.fixes import bound_before
from amplint.source.module import Module

if TYPE_CHECKING:
    from amplint.rewrite.plan import StepPlan


def state_edits(module: Module, plan: StepPlan, scaler: str) -> tuple[list[Edit], list[str]]:
    """Edits for every dict literal that holds the optimizer's state, and for every restoring of it; and words for them.

    Old checkpoints still load: the scaler's state is restored only if it is there and not that of a disabled scaler.
    """
    from amplint.rewrite.plan import Refused

    made: list[Edit] = []
    words: list[str] = []
    optimizer = module.source(module.statement(plan.create.node).targets[0])  # type: ignore[attr-defined]
    for node in ast.walk(module.tree):
        match node:
            case ast.Dict():
                entry = _entry(module, node, optimizer)
                if entry is None:
                    continue
                if not _reachable(module, plan, scaler, node):
                    raise Refused(
                        "the optimizer's state is saved where the scaler is not at hand", "convert it by hand"
                    )
                key, value = entry
                made += edits.add_entry(module, node, value, f"{_quoted(module, key)}: {scaler}.state_dict()")
                words.append("scaler saved in the checkpoint")
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="load_state_dict", value=owner), args=[source])) if (
                module.source(owner) == optimizer
            ):
                if not _reachable(module, plan, scaler, node):
                    raise Refused(
                        "the optimizer's state is loaded where the scaler is not at hand", "convert it by hand"
                    )
                lines = _restoring(module, source, scaler)
                if lines:
                    made += edits.insert_after(module, node, lines)
                    words.append("and restored")
    return made, words


def _entry(module: Module, mapping: ast.Dict, optimizer: str) -> tuple[ast.Constant, ast.expr] | None:
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        match key, value:
            case ast.Constant(value=str()), ast.Call(func=ast.Attribute(attr="state_dict", value=owner)):
                if module.source(owner) == optimizer:
                    return key, value
    return None


def key_for(optimizer_key: str) -> str:
    """The scaler's key in the style of the optimizer's: `optimizer_state_dict` → `scaler_state_dict`."""
    for name in ("optimizer", "optim", "opt"):
        if name in optimizer_key:
            return optimizer_key.replace(name, "scaler", 1)
    return "scaler"


def _quoted(module: Module, key: ast.Constant) -> str:
    return module.source(key).replace(str(key.value), key_for(str(key.value)))


def _restoring(module: Module, source: ast.expr, scaler: str) -> list[str]:
    """`if checkpoint.get("scaler"): scaler.load_state_dict(checkpoint["scaler"])`, in the script's own quotes."""
    match source:
        case ast.Subscript(value=checkpoint, slice=ast.Constant(value=str()) as key):
            quoted, name = _quoted(module, key), module.source(checkpoint)
            return [f"if {name}.get({quoted}):", f"    {scaler}.load_state_dict({name}[{quoted}])"]
    return []


def _reachable(module: Module, plan: StepPlan, scaler: str, node: ast.AST) -> bool:
    """Whether the scaler's name has its value at a node: in the function that makes it, one it is passed to, or
    anywhere for a field or a global."""
    if scaler.startswith("self."):
        return True
    function = module.function(node)
    if function is plan.create.frame.code or (function is None and isinstance(plan.create.frame.code, ast.Module)):
        made = module.statement(plan.create.node)
        return node.lineno > made.lineno and bound_before(module, "True", node)  # type: ignore[attr-defined]
    return isinstance(plan.create.frame.code, ast.Module) or function in {frame.code for frame in plan.path}

"""Checkpoints: the scaler's state is saved where the optimizer's is, and restored where the optimizer's is."""

from __future__ import annotations

import ast

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.home import Home, at_hand
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.source.module import Module


def state_edits(module: Module, home: Home, scaler: str) -> tuple[list[Edit], str]:
    """Edits for every dict literal that holds the optimizer's state, and for every restoring of it; and words for them.

    Old checkpoints still load: the scaler's state is restored only if it is there and not that of a disabled scaler.
    """
    made: list[Edit] = []
    done: dict[str, None] = {}
    for node in ast.walk(module.tree):
        match node:
            case ast.Dict() if entry := _entry(module, node, home.optimizer):
                _check(module, home, node, "saved")
                key, value = entry
                made += edits.add_entry(module, node, value, f"{_quoted(module, key)}: {scaler}.state_dict()")
                done["saved in"] = None
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="load_state_dict", value=owner), args=[source])) if (
                ast.unparse(owner) == home.optimizer and (lines := _restoring(module, source, scaler))
            ):
                _check(module, home, node, "loaded")
                made += edits.insert_after(module, node, lines)
                done["restored from"] = None
    return made, f"{scaler} {' and '.join(sorted(done, reverse=True))} the checkpoint" if done else ""


def _check(module: Module, home: Home, node: ast.AST, what: str) -> None:
    if not at_hand(module, home, node):
        raise Refused(f"the optimizer's state is {what} where the scaler is not at hand", BY_HAND)


def _entry(module: Module, mapping: ast.Dict, optimizer: str) -> tuple[ast.Constant, ast.expr] | None:
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        match key, value:
            case ast.Constant(value=str()), ast.Call(func=ast.Attribute(attr="state_dict", value=owner)):
                if ast.unparse(owner) == optimizer:
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

"""Checkpoints: the scaler's state is saved where the optimizer's is, and restored where the optimizer's is."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.scaler.reach import Reach
from amplint.source.module import Module


def state_edits(
    module: Module, code: ast.AST, reach: Reach, optimizers: Sequence[str], unsure: Collection[ast.AST] = ()
) -> tuple[list[Edit], dict[str, None]]:
    """Edits for every dict in some code that holds the state of the scaler's optimizers, as they are called there, and
    for every restoring of it; and what was done.

    Old checkpoints still load: the scaler's state is restored only if it is there and not that of a disabled scaler,
    and, in the functions that are `unsure` to be given the scaler, only if they are.
    """
    made: list[Edit] = []
    done: dict[str, None] = {}
    shared = len(optimizers) > 1
    last: dict[tuple[ast.AST, str], tuple[ast.stmt, list[str]]] = {}  # the loading of several goes behind the last
    for node in reach.within(module, code):
        match node:
            case ast.Dict() if entries := _entries(node, optimizers):
                _check(module, reach, node, "saved")
                key, value = entries[-1]
                scaler = reach.text(module, node)
                name = _quoted(module, key, scaler, shared)
                made += edits.add_entry(module, node, value, f"{name}: {scaler}.state_dict()")
                done["saved in"] = None
            case ast.Call(func=ast.Name(id="dict"), keywords=keywords) if named := _named(keywords, optimizers):
                _check(module, reach, node, "saved")
                scaler = reach.text(module, node)
                name = _key(named[-1], scaler, len(named) > 1)
                made += edits.add_argument(module, node, f"{name}={scaler}.state_dict()")
                done["saved in"] = None
            case ast.Assign(
                targets=[ast.Subscript(value=mapping, slice=ast.Constant(value=str()) as key)],
                value=ast.Call(func=ast.Attribute(attr="state_dict", value=owner), args=[]),
            ) if ast.unparse(owner) in optimizers:
                _check(module, reach, node, "saved")
                scaler = reach.text(module, node)
                name = _quoted(module, key, scaler, shared)
                line = f"{module.source(mapping)}[{name}] = {scaler}.state_dict()"
                last[module.parents[node], line] = node, [line]
                done["saved in"] = None
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="load_state_dict", value=owner), args=[source])) if (
                ast.unparse(owner) in optimizers
                and (
                    lines := _restoring(
                        module, source, reach.text(module, node), shared, module.function(node) in unsure
                    )
                )
            ):
                _check(module, reach, node, "loaded")
                last[module.parents[node], lines[0]] = node, lines
                done["restored from"] = None
    for statement, lines in last.values():
        made += edits.insert_after(module, statement, lines)
    return made, done


def _check(module: Module, reach: Reach, node: ast.AST, what: str) -> None:
    if not reach.at_hand(module, node):
        raise Refused(f"the optimizer's state is {what} where the scaler is not at hand", BY_HAND)


def _entries(mapping: ast.Dict, optimizers: Sequence[str]) -> list[tuple[ast.Constant, ast.expr]]:
    found: list[tuple[ast.Constant, ast.expr]] = []
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        match key, value:
            case ast.Constant(value=str()), ast.Call(func=ast.Attribute(attr="state_dict", value=owner)):
                if ast.unparse(owner) in optimizers:
                    found.append((key, value))
    return found


def _named(keywords: Sequence[ast.keyword], optimizers: Sequence[str]) -> list[str]:
    """The keywords of dict(…) that are given the state of an optimizer."""
    found: list[str] = []
    for keyword in keywords:
        match keyword:
            case ast.keyword(arg=str() as name, value=ast.Call(func=ast.Attribute(attr="state_dict", value=owner))):
                found += [name] if ast.unparse(owner) in optimizers else []
    return found


def key_for(optimizer_key: str) -> str:
    """The scaler's key in the style of the optimizer's: `optimizer_state_dict` → `scaler_state_dict`."""
    for name in ("optimizer", "optimiser", "optim", "opt"):
        if name in optimizer_key:
            return optimizer_key.replace(name, "scaler", 1)
    return "scaler"


def _key(optimizer_key: str, scaler: str, shared: bool) -> str:
    """The scaler's key. That of a shared scaler names no optimizer."""
    if shared:
        return "scaler_state_dict" if "state_dict" in optimizer_key else "scaler"
    name = key_for(optimizer_key)
    return scaler.rpartition(".")[2] if name == "scaler" else name


def _quoted(module: Module, key: ast.Constant, scaler: str, shared: bool) -> str:
    """The scaler's key, quoted as the optimizer's is."""
    name = _key(str(key.value), scaler, shared)
    return module.source(key).replace(str(key.value), name)


def _restoring(module: Module, source: ast.expr, scaler: str, shared: bool, unsure: bool) -> list[str]:
    """`if checkpoint.get("scaler"): scaler.load_state_dict(checkpoint["scaler"])`, in the script's own quotes."""
    given = f"{scaler} is not None and " if unsure else ""
    match source:
        case ast.Subscript(value=checkpoint, slice=ast.Constant(value=str()) as key):
            quoted, name = _quoted(module, key, scaler, shared), module.source(checkpoint)
            if any(isinstance(one, ast.Call) for one in ast.walk(checkpoint)):  # torch.load(path)["optimizer"]
                state = f"{scaler.rpartition('.')[2]}_state"
                restored = f"    {scaler}.load_state_dict({state})"
                return [f"{state} = {name}.get({quoted})", f"if {given}{state}:", restored]
            return [f"if {given}{name}.get({quoted}):", f"    {scaler}.load_state_dict({name}[{quoted}])"]
    return []

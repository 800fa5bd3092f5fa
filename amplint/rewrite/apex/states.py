"""Checkpoints: amp.state_dict() and amp.load_state_dict() become the scaler's."""

from __future__ import annotations

import ast

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.scope import Scope
from amplint.rewrite.apex.uses import Use
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.layout import end, margin_of, start, unit
from amplint.rewrite.syntax.text import edit
from amplint.source.module import Module


def state_edits(module: Module, uses: list[Use], scope: Scope) -> list[Edit]:
    """The same keys hold the scaler's state. What apex saved is told apart by its keys, and not loaded."""
    made: list[Edit] = []
    for use in uses:
        call = module.parents[use.node]
        if not isinstance(call, ast.Call) or call.func is not use.node:
            raise Refused(f"amp.{use.name} is passed around, not called", BY_HAND)
        scaler = scope.reach(use.node)
        if use.name == "state_dict":
            made += edits.replace(module, use.node, f"{scaler}.state_dict")
            continue
        statement = module.statement(call)
        match statement, call.args:
            case ast.Expr(value=value), [ast.Name() | ast.Attribute() | ast.Subscript() as state] if value is call:
                source = module.source(state)
            case _:
                raise Refused("what amp.load_state_dict is given has no name", "name the saved state first")
        if any(isinstance(node, ast.Call) for node in ast.walk(state)):
            raise Refused("what amp.load_state_dict is given has no name", "name the saved state first")
        margin = margin_of(module, statement)
        quote = "'" if "'" in source else '"'
        known = source
        if isinstance(state, ast.Subscript) and isinstance(state.slice, ast.Constant):
            known = f"{module.source(state.value)}.get({module.source(state.slice)}, {{}})"
        text = f"if {quote}scale{quote} in {known}:  # not what apex saved\n"
        text += f"{margin}{unit(module, margin)}{scaler}.load_state_dict({source})"
        made.append(edit(module, start(module, statement), end(module, statement), text))
    return made


def scale_edits(module: Module, use: Use, scope: Scope) -> list[Edit]:
    """`amp.get_scale(optimizer)`, which is what `optimizer.loss_scale` is called on the way, becomes the scaler's."""
    call = module.parents[use.node]
    if not isinstance(call, ast.Call):
        raise Refused("torch.amp has no amp.get_scale", BY_HAND)
    return edits.replace(module, call, f"{scope.reach(use.node)}.get_scale()")

"""AMP214: a backward that runs the forward again, without the autocast that the forward ran under."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.functions import SPEAKS_OF_AUTOCAST, decorated, functions_in
from amplint.checks.registry import Script, found_at, rule
from amplint.findings import Finding, Severity
from amplint.source.module import Module
from amplint.source.walk import walk


@rule("AMP214")
def checkpoint_ignores_autocast(script: Script) -> Iterator[Finding]:
    """A backward that runs the forward again, without the autocast that the forward ran under."""
    module = script.module
    for cls in functions_in(module):
        backward = next((one for one in cls.body if isinstance(one, ast.FunctionDef) and one.name == "backward"), None)
        if backward is None or "autocast" in module.rows(cls) or decorated(module, backward):
            continue
        again = _runs_again(module, backward)
        if again is not None:
            yield found_at(
                "AMP214",
                module,
                again,
                f"the backward of {cls.name} runs the forward again, outside autocast: in float32 where the forward "
                "ran in half precision",
                severity=Severity.WARNING if SPEAKS_OF_AUTOCAST.search(module.text) else Severity.NOTE,
                help="use torch.utils.checkpoint.checkpoint(…, use_reentrant=False), or keep the state of autocast and "
                "enter it here",
            )


def _runs_again(module: Module, backward: ast.FunctionDef) -> ast.Call | None:
    """The call, under enable_grad, of a function that the forward kept on ctx."""
    if not backward.args.args:
        return None
    ctx = backward.args.args[0].arg
    kept = {
        target.id
        for node in walk(backward)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and _is(node.value.value, ctx)
        for target in node.targets
        if isinstance(target, ast.Name) and node.value.attr != "saved_tensors"
    }
    for region in walk(backward):
        if not isinstance(region, ast.With) or not any(
            "enable_grad" in module.source(item.context_expr) for item in region.items
        ):
            continue
        for node in walk(region):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name == ctx:
                    return node
                case ast.Call(func=ast.Name(id=name)) if name in kept:
                    return node
    return None


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name

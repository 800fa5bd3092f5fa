"""AMP215: autocast is thread-local, and a model runs in another thread."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import MODEL_NAMES, regions_in
from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding
from amplint.source.module import Module
from amplint.source.tree import called_name, named_argument
from amplint.source.walk import walk

# Calls that run their first argument in another thread.
_SUBMITS = frozenset(("submit", "to_thread"))


@rule("AMP215")
def autocast_in_other_thread(script: Script) -> Iterator[Finding]:
    """Inside a region, a function that calls a model is handed to another thread."""
    module = script.module
    if not any(word in module.text for word in ("Thread", "submit", "to_thread")):
        return
    functions = {node.name: node for node in module.all_nodes if isinstance(node, ast.FunctionDef)}
    for region in regions_in(module):
        for node in (inner for statement in region.body for inner in walk(statement)):
            target = _target(module, node) if isinstance(node, ast.Call) else None
            name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
            function = functions.get(name)
            if target is None or function is None or "autocast" in module.rows(function):
                continue
            model = _calls_model(function)
            if model is not None:
                yield found_at(
                    "AMP215",
                    module,
                    node,
                    f"{name} runs in another thread, where this autocast is not active: {text(module, model.func)} "
                    "runs in float32",
                    evidence=[(module, region, "the region, of this thread"), (module, model, "the forward")],
                    help=f"enter autocast in {name}",
                )


def _target(module: Module, call: ast.Call) -> ast.expr | None:
    """The function that a call runs in another thread."""
    match call.func:
        case ast.Attribute(attr=name) if name in _SUBMITS and call.args:
            return call.args[0]
    if "threading.Thread" in module.dotted(call.func):
        return named_argument(call, "target")
    return None


def _calls_model(function: ast.FunctionDef) -> ast.Call | None:
    """The call of something named like a model, on something."""
    for node in walk(function):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = called_name(node)
        if MODEL_NAMES.search(name) and not name.startswith(("load", "save", "get", "set", "build", "make", "create")):
            return node
    return None

"""Family 6, versions: what is newer than the oldest torch that the project asks for, and two APIs for one setting."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.migration.renamed import asks_version
from amplint.checks.registry import Script, found_at, rule
from amplint.checks.scaler.scopes import is_guarded
from amplint.findings import Finding
from amplint.source.module import Module
from amplint.source.tree import names_in

# Name → the first torch that has it.
SINCE = {
    "torch.amp.GradScaler": (2, 3),
    "torch.amp.grad_scaler.GradScaler": (2, 3),
    "torch.GradScaler": (2, 3),
    "torch.cpu.amp.GradScaler": (2, 3),
    "torch.amp.custom_fwd": (2, 4),
    "torch.amp.custom_bwd": (2, 4),
    "torch.amp.is_autocast_available": (2, 4),
    "torch.get_autocast_dtype": (2, 4),
    "torch.set_autocast_dtype": (2, 4),
    "torch.accelerator.current_accelerator": (2, 6),
    "torch.accelerator.is_available": (2, 6),
}
_SETS = ("torch.backends.cuda.matmul.fp32_precision", "torch.backends.fp32_precision")
_OLD = "torch.backends.cuda.matmul.allow_tf32"
_READS = (_OLD, "torch.get_float32_matmul_precision")


@rule("AMP606")
def newer_than_floor(script: Script) -> Iterator[Finding]:
    """A name that the oldest torch to run on does not have."""
    module, oldest = script.module, script.settings.target_torch
    if not script.settings.torch_from:
        return  # nobody said what the oldest is
    for node in module.nodes(ast.ImportFrom):
        for alias in node.names if not node.level else ():
            name = f"{node.module}.{alias.name}"
            if SINCE.get(name, oldest) > oldest and not _guarded(module, node):
                yield _newer(script, alias, name, "ImportError")
    for use in module.nodes(ast.Attribute):
        names = module.dotted(use)
        if len(names) == 1 and SINCE.get(name := next(iter(names)), oldest) > oldest and not _guarded(module, use):
            yield _newer(script, use, name, "AttributeError")


def _newer(script: Script, node: ast.AST, name: str, error: str) -> Finding:
    settings = script.settings
    since, oldest = (".".join(map(str, version)) for version in (SINCE[name], settings.target_torch))
    asked = "target-torch is" if settings.torch_from == "target-torch" else "this project asks for"
    return found_at(
        "AMP606",
        script.module,
        node,
        f"{name} is new in torch {since}, and {asked} {oldest} or later: {error} on {oldest}",
        help=f"ask for torch>={since}, or use what {oldest} has (torch.cuda.amp)",
    )


def _guarded(module: Module, node: ast.AST) -> bool:
    """Whether it is only used where it is there: in a try that catches its absence, or under a question about it."""
    if is_guarded(module, node):
        return True
    tests = [above.test for above in module.ancestors(node) if isinstance(above, ast.If | ast.IfExp)]
    asked = names_in(*tests)
    flags = [
        one.value
        for one in module.nodes(ast.Assign)
        if any(isinstance(target, ast.Name) and target.id in asked for target in one.targets)
    ]
    return any(asks_version(module, one) for one in (*tests, *flags))


@rule("AMP607")
def tf32_api_mix(script: Script) -> Iterator[Finding]:
    """fp32_precision is set, and then the older switch for the same thing is read."""
    module = script.module
    if "fp32_precision" not in module.text:
        return
    stores = [node for node in module.nodes(ast.Attribute) if isinstance(node.ctx, ast.Store)]
    new = [node for node in stores if module.dotted(node) & {*_SETS}]
    calls = module.nodes(ast.Call)
    older = any(_OLD in module.dotted(node) for node in stores)
    older = older or any("torch.set_float32_matmul_precision" in module.dotted(call.func) for call in calls)
    if not new or older:  # once the older one is set as well, they agree
        return
    for node in module.nodes(ast.Attribute):
        if not isinstance(node.ctx, ast.Load) or not module.dotted(node) & {*_READS}:
            continue
        before = next((one for one in new if _runs_before(module, one, node)), None)
        if before is not None:
            yield found_at(
                "AMP607",
                module,
                node,
                "RuntimeError: fp32_precision was set, and this reads the older API for the same setting",
                evidence=[(module, before, "set by the new API"), (module, node, "read by the older one")],
                help="read fp32_precision",
            )


def _runs_before(module: Module, one: ast.AST, other: ast.AST) -> bool:
    """Whether one statement surely runs before another of the same function: it stands before it, in its block or in
    one around it."""
    if module.function(one) is not module.function(other):
        return False
    statement = module.statement(one)
    if statement.lineno >= other.lineno:  # type: ignore[attr-defined]
        return False
    return module.parents[statement] in (*module.ancestors(other),)

"""Family 7, losses that are differentiated past who prepared the optimizer: Accelerate and Fabric."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.frameworks.calls import ACCELERATORS, calls_of, targets
from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source.module import Module
from amplint.source.tree import named_argument
from amplint.source.walk import walk

_FABRICS = ("lightning.Fabric", "lightning.fabric.Fabric", "lightning.fabric.fabric.Fabric", "lightning_fabric.Fabric")
_CLIPS = {
    f"torch.nn.utils.{where}clip_grad_{how}" for where in ("", "clip_grad.") for how in ("norm_", "value_", "norm")
}


@rule("AMP703")
def backward_past_accelerate(script: Script) -> Iterator[Finding]:
    """A loss is differentiated by itself, and an optimizer that Accelerate has prepared steps."""
    module = script.module
    made = list(calls_of(module, *ACCELERATORS))
    severity = _float16(named_argument(made[0], "mixed_precision"), ("fp16",)) if len(made) == 1 else None
    if severity is None:
        return
    for name in targets(module, made[0]):
        for call, step in _past(module, name, "prepare"):
            yield found_at(
                "AMP703",
                module,
                call,
                f"in fp16 this loss is not scaled, and {text(module, step.func)} goes through {name}'s scaler: "
                "AssertionError, no loss was scaled",
                severity=severity,
                evidence=[(module, call, "differentiated as it is"), (module, step, "a prepared optimizer steps")],
                help=f"call {name}.backward({text(module, call.func.value)})",  # type: ignore[attr-defined]
            )


@rule("AMP703")
def unscaled_twice(script: Script) -> Iterator[Finding]:
    """Gradients are unscaled by hand, and then clipped by the Accelerator, which unscales them itself."""
    module = script.module
    if "unscale_gradients(" not in module.text:
        return
    made = list(calls_of(module, *ACCELERATORS))
    severity = _float16(named_argument(made[0], "mixed_precision"), ("fp16",)) if len(made) == 1 else Severity.WARNING
    called = [(call, call.func) for call in module.nodes(ast.Call) if isinstance(call.func, ast.Attribute)]
    for first, unscales in called if severity is not None else ():
        if unscales.attr != "unscale_gradients":
            continue
        name, rest = text(module, unscales.value), _behind(module, first)
        for second, clips in called:
            if text(module, clips) not in (f"{name}.clip_grad_norm_", f"{name}.clip_grad_value_"):
                continue
            steps = any(how.attr == "step" and first.lineno < one.lineno < second.lineno for one, how in called)
            if not steps and any(above in rest for above in module.ancestors(second)):
                yield found_at(
                    "AMP703",
                    module,
                    first,
                    f"{text(module, clips)} unscales by itself, and a second unscale_ before the step raises "
                    "RuntimeError in fp16",
                    severity=severity,
                    evidence=[(module, first, "unscaled here"), (module, second, "and once more here")],
                    help="leave this call out",
                )
                break


def _behind(module: Module, node: ast.AST) -> list[ast.stmt]:
    """The statements that run after that of a node, in the same block."""
    statement = module.statement(node)
    for _, block in ast.iter_fields(module.parents[statement]):
        if isinstance(block, list) and statement in block:
            return list(block[block.index(statement) + 1 :])
    return []


@rule("AMP704")
def past_fabric(script: Script) -> Iterator[Finding]:
    """A loss is differentiated by itself, or scaled gradients are clipped, and an optimizer that Fabric has set up
    steps."""
    module = script.module
    made = list(calls_of(module, *_FABRICS))
    severity = _float16(named_argument(made[0], "precision"), ("16-mixed", "16", 16)) if len(made) == 1 else None
    if severity is None:
        return
    for name in targets(module, made[0]):
        for call, step in _past(module, name, "setup"):
            yield found_at(
                "AMP704",
                module,
                call,
                f'with precision="16-mixed" this loss is not scaled, and {text(module, step.func)} goes through the '
                "scaler",
                severity=severity,
                evidence=[(module, call, "differentiated as it is"), (module, step, "an optimizer of Fabric steps")],
                help=f"call {name}.backward({text(module, call.func.value)})",  # type: ignore[attr-defined]
            )
        for clip in _clips_behind(module, name):
            yield found_at(
                "AMP704",
                module,
                clip,
                f'with precision="16-mixed" these gradients are still multiplied by the loss scale of {name}: the '
                "limit acts as if it were that much smaller",
                severity=severity,
                help=f"call {name}.clip_gradients(model, optimizer, …): it unscales first",
            )


def _float16(precision: ast.expr | None, names: tuple[object, ...]) -> Severity | None:
    """How surely a precision is float16 with a scaler: not at all if it says something else, or nothing."""
    if precision is None:
        return None
    if isinstance(precision, ast.Constant):
        return Severity.ERROR if precision.value in names else None
    return Severity.WARNING


def _past(module: Module, owner: str, method: str) -> Iterator[tuple[ast.Call, ast.Call]]:
    """Calls `loss.backward()` in a function that never asks the owner for it, and steps what the owner has prepared."""
    prepared: set[str] = set()
    for node in module.nodes(ast.Assign):
        match node.value:
            case ast.Call(func=ast.Attribute(attr=called, value=who)) if called.startswith(method):
                if module.source(who) == owner:
                    parts = [p for t in node.targets for p in (t.elts if isinstance(t, ast.Tuple) else [t])]
                    prepared |= {module.source(part) for part in parts}
    if not prepared or f"{owner}.backward(" in module.text or "Scaler" in module.text:
        return
    for top in (module.tree, *module.nodes(ast.FunctionDef)):
        inside = [n for n in walk(top) if isinstance(n, ast.Call) and module.scope(n) is top]
        steps = [call for call in inside if _steps_one_of(module, call, prepared)]
        for call in inside if steps else ():
            match call:
                case ast.Call(func=ast.Attribute(attr="backward", value=ast.Name()), args=[], keywords=[]):
                    yield call, steps[0]


def _steps_one_of(module: Module, call: ast.Call, prepared: set[str]) -> bool:
    """Whether this steps a prepared optimizer: no scheduler, which is prepared, too."""
    match call.func:
        case ast.Attribute(attr="step", value=owner) if (name := module.source(owner)) in prepared:
            return "opt" in name.lower() and "sched" not in name.lower()
    return False


def _clips_behind(module: Module, owner: str) -> Iterator[ast.Call]:
    """Clips by torch, in a block where the owner has run the backward before and nothing has stepped since."""
    for call in module.nodes(ast.Call):
        if not module.dotted(call.func) & _CLIPS:
            continue
        function = module.scope(call)
        before = [
            one
            for one in walk(function)
            if isinstance(one, ast.Call)
            and one.lineno < call.lineno
            and isinstance(one.func, ast.Attribute)
            and one.func.attr in ("backward", "step", "unscale_")
        ]
        last = max(before, key=lambda one: one.lineno, default=None)
        if last is not None and module.source(last.func) == f"{owner}.backward":
            yield call

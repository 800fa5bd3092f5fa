"""Family 1, steps that the scaler does not see: from a hook during backward, and the second of two passes."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.checks.scaler.misuse import other_arm, scalers_of
from amplint.checks.scaler.protocol import is_disabled
from amplint.findings import Finding
from amplint.source import events
from amplint.source.interpret.roles import path_of
from amplint.source.module import Module
from amplint.source.tree import called_name, place_of
from amplint.source.values import Scaler
from amplint.source.walk import walk


@rule("AMP129")
def optimizer_in_backward(script: Script) -> Iterator[Finding]:
    """An optimizer steps from a hook during a scaled backward."""
    module = script.module
    if "register_post_accumulate_grad_hook" not in module.text:
        return
    scaled = [b for b in script.events(events.Backward) if isinstance(b.scaler, Scaler) and not is_disabled(b.scaler)]
    if not scaled:
        return
    for node in module.all_nodes:
        if not isinstance(node, ast.Call) or called_name(node) != "register_post_accumulate_grad_hook" or not node.args:
            continue
        step = _step_in(module, node.args[0])
        if step is not None:
            yield found_at(
                "AMP129",
                module,
                node,
                "the optimizer steps from a hook, during backward: on gradients that are still multiplied by the loss "
                "scale (65536 at first), and the scaler never looks at them",
                evidence=[
                    (scaled[0].module, scaled[0].node, "the loss is scaled here"),
                    (module, step, "and this steps on its gradients"),
                ],
                help="use bfloat16, which needs no scaler, or step after backward",
            )


def _step_in(module: Module, hook: ast.expr) -> ast.Call | None:
    """The plain step of an optimizer in a hook."""
    body: ast.AST | None = hook
    if not isinstance(hook, ast.Lambda):
        name = called_name(hook)
        if isinstance(hook, ast.Call):  # partial(hook, …), or a factory of hooks
            name = called_name(hook.args[0]) if called_name(hook) == "partial" and hook.args else name
        defined = (n for n in module.all_nodes if isinstance(n, ast.FunctionDef) and n.name == name)
        body = next(defined, None)
    if body is None or any(_unscaling(node) for node in walk(body)):
        return None
    for node in walk(body):
        match node:
            case ast.Call(func=ast.Attribute(attr="step"), args=[], keywords=[]):
                return node
    return None


def _unscaling(node: ast.AST) -> bool:
    """Whether a hook divides by the scale itself."""
    match node:
        case ast.Call():
            return called_name(node) in ("div_", "unscale_", "get_scale")
        case ast.AugAssign(op=ast.Div()):
            return True
    return False


@rule("AMP131")
def two_pass_optimizer(script: Script) -> Iterator[Finding]:
    """SAM and its kind step twice an iteration: each pass must be unscaled, with an update between them."""
    module = script.module
    if "second_step" not in module.text:
        return
    names = scalers_of(script)
    for function in [n for n in module.all_nodes if isinstance(n, ast.FunctionDef | ast.Module)]:
        calls = [n for n in walk(function) if isinstance(n, ast.Call) and module.scope(n) is function]
        told = sorted((place_of(n), n, _does(n, names)) for n in calls if _does(n, names))
        doing = [what for _, _, what in told]
        if "first" not in doing or "second" not in doing or "scaled" not in doing or _branches(module, told):
            continue
        second = doing.index("second")
        first = doing.index("first")
        last = max((i for i in range(second) if doing[i] == "scaled"), default=-1)
        if last < first:
            continue  # the second backward is not seen
        unscaled = "unscale" in doing[last:second]
        both = unscaled and "unscale" in doing[:first] and "update" not in doing[first:last]
        if not unscaled or both:
            message = (
                "the second pass unscales again before update(): this raises RuntimeError, unscale_() has already been "
                "called"
                if both
                else "this steps on gradients that are still multiplied by the loss scale (65536 at first)"
            )
            yield found_at(
                "AMP131",
                module,
                told[second][1],
                message,
                evidence=[
                    (module, told[last][1], "the second loss is scaled"),
                    (module, told[second][1], "and used here"),
                ],
                help="in each pass: unscale_, the optimizer's own step, update()",
            )


def _does(call: ast.Call, scalers: set[str]) -> str:
    """What a call does to a two-pass step."""
    receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
    match called_name(call):
        case "first_step":
            return "first"
        case "second_step":
            return "second"
        case "unscale_":
            return "unscale"
        case "update" if path_of(receiver) in scalers if receiver is not None else False:
            return "update"
        case "backward" if isinstance(receiver, ast.Call) and called_name(receiver) == "scale":
            return "scaled"
    return ""


def _branches(module: Module, told: list[tuple[tuple[int, int], ast.Call, str]]) -> bool:
    """Whether the step with a scaler stands in another arm than this one."""
    seconds = [call for _, call, what in told if what == "second"]
    scaled = [call for _, call, what in told if what == "scaled"]
    return any(other_arm(module, one, other) for one in scaled for other in seconds)

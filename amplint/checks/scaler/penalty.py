"""Family 1, gradients that are not the optimizer's: those of a penalty, and those that a hook sees."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.interpret.tensors import HALF, is_scale, region_dtype, tensors_in
from amplint.source.module import Module
from amplint.source.tree import is_differentiable
from amplint.source.values import FALSE, KNOWN, Scaler, Tensor, Value
from amplint.source.walk import walk

# What depends on the size of a gradient in another way than in proportion.
_NONLINEAR = frozenset(("norm", "pow", "square", "vector_norm", "linalg_vector_norm", "sqrt", "exp", "log", "clamp"))
_LINEAR = frozenset(("grad", "sum", "mean", "mul", "div", "add", "cat", "stack", "neg", "norm", "sqrt", "abs", "scale"))


@rule("AMP119")
def gradient_penalty_not_unscaled(script: Script) -> Iterator[Finding]:
    """The gradient of a scaled output is used as if it were not scaled, or the other way round."""
    for event in script.events(events.Operation):
        if event.name in _NONLINEAR:
            scaled = [t for t in tensors_in(event.args) if isinstance(t.scaler, Scaler) and t.scaler.enabled != FALSE]
            grad = next((g for g in map(_gradient, scaled) if g is not None), None)
            if grad is None:
                continue
            if "get_scale" in text(event.module, event.module.statement(event.node), 400):
                continue
            yield found(
                "AMP119",
                event,
                "this gradient is that of a scaled output: it is multiplied by the loss scale (65536 at first), and so "
                "is the penalty",
                evidence=[*_taken(script, grad, "the gradient of a scaled output"), (event, "used as it is")],
                help="divide it first: grad = grad * (1.0 / scaler.get_scale())",
            )
        elif event.name in ("mul", "div") and any(is_scale(value) for value in event.args):
            grad = next((g for g in map(_gradient, tensors_in(event.args)) if g is not None), None)
            if grad is None or grad.scaler is not None or not _seen(script, grad):
                continue
            function = event.module.function(event.node)
            if function is not None and ".scale" in event.module.source(function).replace(".scale_", ""):
                continue
            yield found(
                "AMP119",
                event,
                "this gradient is divided by the loss scale, but the output that it is the gradient of was never "
                "scaled: next to nothing is left of the penalty",
                evidence=[*_taken(script, grad, "the gradient of an output as it is"), (event, "divided here")],
                help="differentiate scaler.scale(outputs)",
            )


@rule("AMP119")
def gradient_penalty_in_half(script: Script) -> Iterator[Finding]:
    """The gradient that a penalty needs is computed in float16, where small gradients vanish, without a scale."""
    scaled = any(isinstance(b.scaler, Scaler) and b.scaler.enabled != FALSE for b in script.events(events.Backward))
    if not scaled:
        return
    for event in script.events(events.Operation):
        if event.name != "grad" or not is_differentiable(event.node) or ".scale(" in event.module.source(event.node):
            continue
        outputs = next(iter(event.args), None) or dict(event.kwargs).get("outputs")
        half = [t for t in tensors_in([outputs] if outputs else []) if _is_half(t)]
        if half and all(t.scaler is None and not _is_bfloat16(t) for t in half):
            yield found(
                "AMP119",
                event,
                "this gradient runs through float16 unscaled: small ones become zero before the penalty sees them",
                severity=Severity.NOTE,
                help="differentiate scaler.scale(outputs) and divide by scaler.get_scale(), or compute the outputs in "
                "float32",
            )


def _is_half(output: Tensor) -> bool:
    """Whether a tensor is in half precision: it is seen, or a model that is not seen returns it in a float16 region."""
    if output.trust == KNOWN and output.dtype in HALF:
        return True
    if output.made in ("sum", "mean") and output.parents:  # autocast adds up in float32, of what is half
        return isinstance(output.parents[0], Tensor) and _is_half(output.parents[0])
    made = output.dtype == "" and output.made == "" and isinstance(output.node, ast.Call) and bool(output.of)
    region = output.region if made else None
    return region is not None and not region.assumed and region_dtype(region) == "float16"


def _is_bfloat16(output: Tensor) -> bool:
    inner = output.parents[0] if output.made in ("sum", "mean") and output.parents else output
    return isinstance(inner, Tensor) and inner.dtype == "bfloat16"


def _gradient(value: Value, depth: int = 6) -> Tensor | None:
    """The autograd.grad(…, create_graph=True) that a tensor is in proportion to."""
    if not isinstance(value, Tensor) or depth == 0:
        return None
    if value.made == "grad":
        return value if value.node is not None and is_differentiable(value.node) else None
    if value.made and value.made not in _LINEAR - _NONLINEAR:
        return None
    return next((g for g in (_gradient(parent, depth - 1) for parent in value.parents) if g is not None), None)


def _taken(script: Script, grad: Tensor, words: str) -> list[tuple[events.Event | None, str]]:
    taken = next((e for e in script.events(events.Operation) if e.node is grad.node), None)
    return [(taken, words)]


def _seen(script: Script, grad: Tensor) -> bool:
    """Whether what is differentiated comes from a model in sight: not from a caller, who may have scaled it."""
    outputs = list(tensors_in(grad.parents[:1]))
    for event in script.events(events.Operation):
        if event.node is grad.node:
            outputs += tensors_in(value for name, value in event.kwargs if name == "outputs")
    return any(tensor.of for tensor in outputs)


# -- hooks -------------------------------------------------------------------------------------------------------------

_HOOKS = frozenset(("register_hook", "register_full_backward_hook", "register_post_accumulate_grad_hook"))
_LIMITS = frozenset(
    ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_max", "clip_grad_norm_", "clip_grad_value_", "renorm")
)


@rule("AMP107")
def absolute_gradient_hook(script: Script) -> Iterator[Finding]:
    """A hook that limits gradients to a size sees them while they are multiplied by the loss scale."""
    module = script.module
    scaled = [b for b in script.events(events.Backward) if isinstance(b.scaler, Scaler) and b.scaler.enabled != FALSE]
    if not scaled:
        return
    for node in module.all_nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr=name), args=[hook, *_]) if name in _HOOKS:
                limit = _limit(module, hook)
                if limit is None:
                    continue
                yield found_at(
                    "AMP107",
                    module,
                    node,
                    "this hook sees gradients multiplied by the loss scale (65536 at first): "
                    f"{text(module, limit)} acts as if its limit were that much smaller",
                    evidence=[
                        (module, limit, "limits them"),
                        (scaled[0].module, scaled[0].node, "gradients are scaled"),
                    ],
                    help="clip after scaler.unscale_(optimizer), or compare with limit * scaler.get_scale()",
                )


def _limit(module: Module, hook: ast.expr) -> ast.AST | None:
    """Where a hook limits or compares the size of the gradient that it is given."""
    code: ast.AST | None = hook if isinstance(hook, ast.Lambda) else _function(module, hook)
    if not isinstance(code, ast.Lambda | ast.FunctionDef) or "scale" in module.source(code):
        return None
    given = {argument.arg for argument in code.args.args if argument.arg != "self"}
    for node in walk(code):
        match node:
            case ast.Call(func=ast.Attribute(value=owner, attr=name), args=args) if name in _LIMITS:
                touched = [owner, *args[:1]]
                if any(isinstance(one, ast.Name) and one.id in given for t in touched for one in walk(t)):
                    return node
    return None


def _function(module: Module, hook: ast.expr) -> ast.FunctionDef | None:
    """The function of this file that a hook names."""
    name = hook.id if isinstance(hook, ast.Name) else hook.attr if isinstance(hook, ast.Attribute) else ""
    named = [one for one in module.all_nodes if isinstance(one, ast.FunctionDef) and one.name == name]
    return named[0] if len(named) == 1 else None

"""Squares and sums that half precision cannot hold, and sums that stop growing in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.numerics.common import LARGEST, float16, guarded, known_as, made_half, uses
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import FALSE, KNOWN, Const, Gradient, Tensor, Value
from amplint.source.walk import walk

_PRODUCTS = frozenset("matmul bmm mm einsum".split())
_SUMS = frozenset("mean sum nansum nanmean norm linalg_vector_norm".split())


@rule("AMP408")
def square_then_reduce(script: Script) -> Iterator[Finding]:
    """A float16 tensor is squared before it is averaged or summed."""
    sums = None
    for event in script.events(events.Operation):
        trust = float16(script, event.result) if event.name in ("mul", "pow", "square") else None
        if trust is None or not _is_square(event) or guarded(event) or (trust != KNOWN and _in_island(event)):
            continue
        sums = uses(script) if sums is None else sums
        total = next((use for use in sums.get(event.node, ()) if use.name in _SUMS and _first(use, event)), None)
        if total is None:
            continue
        yield found(
            "AMP408",
            event,
            f"squared in float16 before {total.name}: inf from |x| = 256 on ({LARGEST:.0f} is the largest number)",
            severity=known_as(trust),
            evidence=[*made_half(script, event.args[0]), (total, "reduced here")],
            help="square in float32: x.float().pow(2)",
            fix=fixes.square_in_float32(event.module, event.node, event.region is not None and trust == KNOWN),
        )


def _in_island(event: events.Operation) -> bool:
    """Whether autocast was switched off on purpose here: what is given is hardly half then."""
    return event.region is not None and event.region.autocast.enabled == FALSE


def _is_square(event: events.Operation) -> bool:
    if event.name == "square":
        return True
    if len(event.args) < 2:
        return False
    left, right = event.args[0], event.args[1]
    if event.name == "pow":
        return isinstance(right, Const) and right.value == 2
    if isinstance(left, Tensor) and isinstance(right, Tensor) and left.identity == right.identity:
        return True
    match event.node:
        case ast.BinOp(left=one, right=other) | ast.Call(args=[one, other]):
            return ast.dump(one) == ast.dump(other) and isinstance(left, Tensor)
    return False


def _first(use: events.Operation, made: events.Operation) -> bool:
    return bool(use.args) and isinstance(use.args[0], Tensor) and use.args[0].node is made.node


@rule("AMP408")
def expanded_distance(script: Script) -> Iterator[Finding]:
    """A squared distance is the difference of large numbers, one of which is a half-precision product."""
    for event in script.events(events.Operation):
        if event.name not in ("add", "sub") or len(event.args) < 2 or guarded(event):
            continue
        products = [part for arg in event.args[:2] if (part := _doubled(arg)) is not None]
        if not products or not any(_sum_of_squares(arg) for arg in event.args[:2]):
            continue
        product = products[0]
        yield found(
            "AMP408",
            event,
            "a squared distance as |a|² - 2ab + |b|², with the product in half precision: the distance of near vectors "
            "is lost in its rounding",
            severity=known_as(product.trust),
            evidence=made_half(script, product),
            help="compute it in float32: with torch.autocast(device_type, enabled=False), or torch.cdist",
        )


def _doubled(value: Value) -> Tensor | None:
    """The half-precision matrix product in 2 * (a @ b), or (2 * a) @ b."""
    if not isinstance(value, Tensor):
        return None
    inner = [part for part in value.parents if isinstance(part, Tensor)]
    if value.made == "mul" and _times_two(value):
        return next((part for part in inner if part.made in _PRODUCTS and part.dtype in tensors.HALF), None)
    doubled = value.made in _PRODUCTS and value.dtype in tensors.HALF
    return value if doubled and any(part.made == "mul" and _times_two(part) for part in inner) else None


def _times_two(product: Tensor) -> bool:
    return any(isinstance(part, Const) and part.value in (2, -2) for part in product.parents)


def _sum_of_squares(value: Value, depth: int = 3) -> bool:
    """Whether something is a sum of squares, perhaps with another one added."""
    if not isinstance(value, Tensor) or depth == 0:
        return False
    if value.made == "sum":
        return any(isinstance(part, Tensor) and part.made in ("pow", "square", "mul") for part in value.parents)
    return value.made in ("add", "sub") and any(_sum_of_squares(part, depth - 1) for part in value.parents)


_GROWING = {  # what becomes inf, and the ops whose result is half even under autocast
    "sum": "a sum",
    "nansum": "a sum",
    "trace": "a trace",
    "cumsum": "a running sum",
}


@rule("AMP409")
def half_reduction(script: Script) -> Iterator[Finding]:
    """A sum whose result is half precision, though it may be larger than that holds."""
    for event in script.events(events.Operation):
        if guarded(event) or not event.args:
            continue
        if event.name in ("norm", "linalg_vector_norm"):
            yield from _norm_of_gradients(event)
            continue
        what = _GROWING.get(event.name)
        if what is None or event.result.trust != KNOWN or event.result.dtype not in tensors.HALF:
            continue
        trust = float16(script, event.result)
        if event.name == "cumsum":
            message = (
                "a running sum in half precision stops counting by ones: float16 at 2048, bfloat16 at 256"
                if event.result.dtype == "low"
                else f"a running sum in {event.result.dtype} stops counting by ones at "
                f"{2048 if event.result.dtype == 'float16' else 256}"
            )
        elif trust == KNOWN and not _along_a_dim(event):
            message = f"{what} over all elements is inf in float16 where it passes {LARGEST:.0f}"
        else:
            continue
        yield found(
            "AMP409",
            event,
            message,
            evidence=made_half(script, event.args[0]),
            help="sum in float32: dtype=torch.float32"
            if event.name in ("sum", "cumsum", "nansum")
            else "compute it in float32: x.float()",
            fix=fixes.reduce_in_float32(event.module, event.node)
            if event.name in ("sum", "cumsum", "nansum")
            else None,
        )


def _along_a_dim(event: events.Operation) -> bool:
    return len(event.args) > 1 or any(name in ("dim", "axis") for name, _ in event.kwargs)


def _norm_of_gradients(event: events.Operation) -> Iterator[Finding]:
    """A norm of gradients in the gradients' own dtype, in code that knows of half precision."""
    if not _is_gradient(event.args[0]) or event.result.dtype or not _speaks_of_half(event):
        return
    if any(name == "dtype" for name, _ in event.kwargs):
        return
    yield found(
        "AMP409",
        event,
        f"the norm has the gradients' dtype: where that is float16, it is inf past {LARGEST:.0f}, and clipping by it "
        "sets every gradient to zero",
        severity=Severity.NOTE,
        help="torch.norm(gradient, dtype=torch.float32)",
    )


def _is_gradient(value: Value) -> bool:
    """Whether something is a gradient, of parameters that may be unknown: what `p.grad.detach()` made."""
    if isinstance(value, Tensor) and value.made == "" and isinstance(value.node, ast.Call):
        return any(isinstance(node, ast.Attribute) and node.attr == "grad" for node in walk(value.node.func))
    return isinstance(value, Gradient)


def _speaks_of_half(event: events.Event) -> bool:
    return any(word in event.module.text for word in ("float16", "fp16", ".half()", "FP16", "HalfTensor"))


@rule("AMP410")
def half_accumulator(script: Script) -> Iterator[Finding]:
    """A total over the batches of a loop is kept in half precision."""
    for event in script.events(events.Operation):
        if event.name != "add" or not isinstance(event.node, ast.AugAssign | ast.BinOp) or not event.loops:
            continue
        total = event.args[0]
        if not isinstance(total, Tensor) or total.dtype not in tensors.HALF or total.trust != KNOWN:
            continue
        added = event.args[1] if len(event.args) > 1 else None
        if not _one_number(added) or not _over_batches(script, event):
            continue
        again = total.node is event.node  # what this very statement made in the round before
        if not (_is_half(added) if again else _begins_half(event, total)):
            continue
        kept = "half precision" if total.dtype == "low" else total.dtype
        limit = {"float16": "2048", "bfloat16": "256"}.get(total.dtype, "2048 (256 in bfloat16)")
        yield found(
            "AMP410",
            event,
            f"the total is kept in {kept}: from {limit} on, adding 1 changes nothing",
            evidence=made_half(script, added) if again and added is not None else [],
            help="add in float32: total += x.float()" if again else "begin with a total in float32",
            fix=fixes.add_in_float32(event.module, event.node) if again else None,
        )


def _begins_half(event: events.Operation, total: Tensor) -> bool:
    """Whether a total is made in half precision before the loop, of nothing: whatever is added in place, it stays
    half."""
    made, module = total.node, event.module
    while total.made in ("half", "bfloat16", "to") and total.parents and isinstance(total.parents[0], Tensor):
        total = total.parents[0]
    empty = total.made in ("zeros", "tensor", "new_zeros")
    if not isinstance(event.node, ast.AugAssign) or not empty or made not in module.parents:
        return False
    return all(above is not event.loops[-1].node for above in module.ancestors(made))


_KEEP = frozenset("mul div to half bfloat16 float add".split())


def _is_half(value: Value | None) -> bool:
    return isinstance(value, Tensor) and value.dtype in tensors.HALF and value.trust == KNOWN


def _one_number(value: Value | None) -> bool:
    """Whether something is one number for a batch: a loss, a mean, a sum."""
    made = value
    while isinstance(made, Tensor) and made.made in _KEEP and made.parents:
        made = made.parents[0]
    return isinstance(made, Tensor) and (made.made in tensors.LOSSES or made.made in ("mean", "sum", "nansum"))


def _over_batches(script: Script, event: events.Operation) -> bool:
    """Whether the innermost loop runs the model on batches, and nothing takes the total's gradient."""
    loop = event.loops[-1].node
    calls = any(forward.loops and forward.loops[-1].node is loop for forward in script.events(events.Forward))
    return calls and not any(
        isinstance(backward.loss, Tensor) and backward.loss.node is event.node
        for backward in script.events(events.Backward)
    )

"""Products of matrices that overflow before they are scaled or normalised."""

from __future__ import annotations

from collections.abc import Iterator

from amplint.checks.numerics.common import LARGEST, is_half, made_half
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.values import ASSUMED, Choice, Const, Sym, Tensor, Value

_PRODUCTS = frozenset("matmul bmm mm baddbmm einsum".split())


@rule("AMP406")
def attention_scaled_late(script: Script) -> Iterator[Finding]:
    """Attention scores are scaled after the product, which has overflowed by then."""
    for event in script.events(events.Operation):
        if event.name not in ("mul", "div") or len(event.args) < 2 or event.region is None:
            continue
        left, right = event.args[0], event.args[1]
        if event.name == "mul" and not _product(left):
            left, right = right, left
        if not _product(left) or not _scale(right) or not isinstance(left, Tensor):
            continue
        if not is_half(left, ASSUMED) or not _becomes_weights(script, event.result):
            continue
        if any(isinstance(part, Tensor) and part.made in ("mul", "div", "normalize") for part in left.parents):
            continue
        severity = Severity.NOTE if left.trust == ASSUMED else Severity.WARNING
        yield found(
            "AMP406",
            event,
            f"the scores are scaled after the product: in float16 it is inf from {LARGEST:.0f} on, and softmax then "
            f"gives nan",
            severity=severity,
            evidence=made_half(script, left),
            help="scale q before the product, or use F.scaled_dot_product_attention",
            fix=fixes.scale_first(event.module, event.node),
        )


def _product(value: Value) -> bool:
    return isinstance(value, Tensor) and value.made in _PRODUCTS


def _scale(value: Value) -> bool:
    """Whether a factor is a number, not a tensor of data."""
    match value:
        case Const(value=bool()):
            return False
        case Const(value=int() | float()):
            return True
        case Sym():
            return value.kind in ("op", "call", "attr", "argument", "item", "constant", "unary", "number", "unknown")
        case Choice():
            return _scale(value.yes) and _scale(value.no)
    return False


def _becomes_weights(script: Script, scores: Tensor) -> bool:
    """Whether scores end in a softmax."""
    softmaxes = (event for event in script.events(events.Operation) if event.name in ("softmax", "log_softmax"))
    return any(isinstance(arg, Tensor) and _still(arg, scores.node) for event in softmaxes for arg in event.args)


_SCORES_STAY = frozenset("add masked_fill where clamp sub float to index_put mul".split())


def _still(tensor: Tensor, node: object, depth: int = 6) -> bool:
    """Whether a tensor is the one made at `node`, masked, shifted or cast since, in one of two ways or not at all."""
    if tensor.node is node:
        return True
    if depth == 0 or not (tensor.made in _SCORES_STAY or tensor.made == ""):
        return False
    return any(isinstance(part, Tensor) and _still(part, node, depth - 1) for part in tensor.parents)


@rule("AMP407")
def unnormalised_contraction(script: Script) -> Iterator[Finding]:
    """Products of products are divided by their own normaliser only afterwards, when they have overflowed."""
    products = {event.result.node: event for event in script.events(events.Operation) if event.name in _PRODUCTS}
    for event in script.events(events.Operation):
        if event.name != "div" or len(event.args) < 2:
            continue
        above, below = event.args[0], event.args[1]
        if not isinstance(above, Tensor) or not isinstance(below, Tensor) or not is_half(above, ASSUMED):
            continue
        product = products.get(above.node)
        if product is None or not _derives(below, above.node) or not any(_product(part) for part in product.args):
            continue
        yield found(
            "AMP407",
            product,
            f"a product of sums is normalised only afterwards: in float16 it is inf from {LARGEST:.0f} on before "
            f"the division",
            severity=Severity.NOTE if above.trust == ASSUMED else Severity.WARNING,
            evidence=[(product, "multiplied and summed in half precision"), (event, "normalised after it")],
            help="compute both in float32: .float() under torch.autocast(device_type, enabled=False)",
        )


def _derives(tensor: Tensor, node: object, depth: int = 4) -> bool:
    """Whether a tensor was computed from the one made at `node`."""
    if tensor.node is node:
        return True
    return depth > 0 and any(isinstance(part, Tensor) and _derives(part, node, depth - 1) for part in tensor.parents)

"""Products of matrices that overflow before they are scaled or normalised."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.numerics.common import LARGEST, is_half, made_half
from amplint.checks.registry import Script, found, rule
from amplint.checks.state.casts import assigned
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.module import Module
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
        if not _product(left) or not _scale(right, event.name) or not isinstance(left, Tensor):
            continue
        if not is_half(left, ASSUMED) or not _becomes_weights(script, event.result):
            continue
        if any(_made_small(part) for part in left.parents):
            continue
        severity = _grade(left)
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


_SHAPES = frozenset(
    "to float unsqueeze squeeze view reshape flatten transpose permute contiguous getitem rearrange".split()
)


def _made_small(value: Value, depth: int = 5) -> bool:
    """Whether a factor was scaled before the product, whatever shape or dtype it was given since."""
    if not isinstance(value, Tensor) or depth == 0:
        return False
    if value.made in ("mul", "div", "normalize"):
        return True
    return value.made in _SHAPES and any(_made_small(part, depth - 1) for part in value.parents[:1])


def _product(value: Value) -> bool:
    return isinstance(value, Tensor) and value.made in _PRODUCTS


def _scale(value: Value, how: str) -> bool:
    """Whether a factor is a number, not a tensor of data, and may make scores smaller: not 2, in -2ab."""
    match value:
        case Const(value=bool()):
            return False
        case Const(value=int() | float() as number):
            return abs(number) < 1 if how == "mul" else abs(number) > 1
        case Sym():
            return value.kind in ("op", "call", "attr", "argument", "item", "constant", "unary", "number", "unknown")
        case Choice():  # 1 where an option scales nothing
            sides = (value.yes, value.no)
            return any(_scale(one, how) for one in sides) and all(_scale(one, how) or one in _ONE for one in sides)
    return False


_ONE = (Const(1), Const(1.0))


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
    for product, above, division in _divided(script):
        below = division.args[1]
        if isinstance(below, Tensor) and _derives(below, above.node) and any(map(_product, product.args)):
            yield found(
                "AMP407",
                product,
                f"a product of sums is normalised only afterwards: in float16 it is inf from {LARGEST:.0f} on before "
                f"the division",
                severity=_grade(above),
                evidence=[(product, "multiplied and summed in half precision"), (division, "normalised after it")],
                help="compute both in float32: .float() under torch.autocast(device_type, enabled=False)",
            )


@rule("AMP407")
def gram_matrix(script: Script) -> Iterator[Finding]:
    """Features are multiplied with themselves, and the sum over all positions is divided by their number afterwards."""
    for product, above, division in _divided(script):
        if above.made in _PRODUCTS and _with_itself(product) and _is_count(division.args[1]):
            yield found(
                "AMP407",
                product,
                f"squares are summed over all positions and divided by their number only afterwards: in float16 the "
                f"sum is inf from {LARGEST:.0f} on",
                severity=_grade(above),
                evidence=[(product, "summed in half precision"), (division, "divided after it")],
                help="divide the features by the root of the number before the product, or compute it in float32: "
                ".float() under torch.autocast(device_type, enabled=False)",
            )


def _divided(script: Script) -> Iterator[tuple[events.Operation, Tensor, events.Operation]]:
    """Products, what is known of their result where it is divided in half precision, and that division."""
    products = {event.result.node: event for event in script.events(events.Operation) if event.name in _PRODUCTS}
    for event in script.events(events.Operation):
        above = event.args[0] if event.name == "div" and len(event.args) > 1 else None
        if isinstance(above, Tensor) and above.node in products and is_half(above, ASSUMED):
            yield products[above.node], above, event


def _grade(tensor: Tensor) -> Severity:
    return Severity.NOTE if tensor.trust == ASSUMED else Severity.WARNING


def _with_itself(product: events.Operation) -> bool:
    """Whether both factors are all of one tensor, in whatever shape."""
    factors = [arg for arg in product.args if isinstance(arg, Tensor)]
    if len(factors) != 2 or factors[0].node is None or factors[0].node is not factors[1].node:
        return False
    if factors[0].made in _SMALL:
        return False
    match product.node:
        case ast.BinOp(left=one, right=other):
            pass
        case ast.Call(args=[*_, one, other]):
            pass
        case ast.Call(func=ast.Attribute(value=one), args=[other]):
            pass
        case _:
            return False
    variable = _whole(product.module, one)
    return variable != "" and variable == _whole(product.module, other)


def _whole(module: Module, factor: ast.expr, depth: int = 2) -> str:
    """The variable that a factor is, or holds all numbers of: "f" of `f.t()`; "" of parts of one, as `chunk` gives."""
    while True:
        match factor:
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in _ALL:
                factor = inner
            case ast.Attribute(value=inner, attr="T" | "mT" | "H"):
                factor = inner
            case ast.Name(id=name):
                values = list(assigned(module, factor)) if depth else []
                further = _whole(module, values[0], depth - 1) if len(values) == 1 else ""
                return further or name
            case _:
                return ""


_SMALL = frozenset("normalize softmax sigmoid tanh div".split())  # what gives numbers of ordinary size, or below
_ALL = frozenset("t transpose permute contiguous view reshape flatten swapaxes conj".split())


def _is_count(value: Value) -> bool:
    """Whether a number counts entries: the product of two sizes or more, perhaps less one."""
    match value:
        case Sym(kind="op", parts=("Sub", Value() as count, Const(value=1))):
            return _is_count(count)
        case Sym(kind="op", parts=("Mult", Value() as one, Value() as other)):
            return all(_is_size(part) or _is_count(part) for part in (one, other))
    return False


def _is_size(value: Value) -> bool:
    return isinstance(value, Sym) and value.kind == "item" and isinstance(value.parts[0], Sym) and _is_shape(value)


def _is_shape(size: Sym) -> bool:
    shape = size.parts[0]
    return isinstance(shape, Sym) and shape.kind == "attr" and shape.parts[-1] == "shape"


def _derives(tensor: Tensor, node: object, depth: int = 4) -> bool:
    """Whether a tensor was computed from the one made at `node`."""
    if tensor.node is node:
        return True
    return depth > 0 and any(isinstance(part, Tensor) and _derives(part, node, depth - 1) for part in tensor.parents)

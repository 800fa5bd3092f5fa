"""Family 4, numerics: constants, sums and products that do not fit in half precision."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterator

from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import ASSUMED, GIVEN, KNOWN, Choice, Const, Lib, Question, Sym, Tensor, Value

LARGEST = 65504.0  # torch.finfo(torch.float16).max
VANISHES = 2.0**-25  # and below: rounds to zero in float16
SMALLEST_NORMAL = 2.0**-14
_FILLS = frozenset(
    "masked_fill fill clamp index_fill pad full full_like where index_put tensor as_tensor add sub".split()
)
_SILENT = frozenset("where index_put tensor as_tensor add sub".split())  # become inf without an error
_MAKES = frozenset("full full_like tensor as_tensor".split())  # the result is what is filled


def constants(value: Value | None) -> list[Const]:
    """The finite numbers that a value may be. A choice that depends on a dtype is its author's answer to this very
    question: none."""
    match value:
        case Const(value=bool()):
            return []
        case Const(value=int() | float() as number) if abs(number) <= sys.float_info.max:  # also of an int without end
            return [value]
        case Choice():
            if _about_dtype(value.formula):
                return []
            return constants(value.yes) + constants(value.no)
    return []


_FINFO = {"eps": 2.0**-10, "tiny": 2.0**-14, "smallest_normal": 2.0**-14, "resolution": 1e-3}


def _at_half(value: Value) -> float:
    """What a product or power of torch.finfo(x.dtype).eps is where x is float16; nan for anything else."""
    match value:
        case Sym(kind="attr", parts=(Sym(kind="finfo", parts=(dtype,)), str() as name)) if _open(dtype):
            return _FINFO.get(name, math.nan)
        case Choice():
            below = [number for number in (_at_half(value.yes), _at_half(value.no)) if not math.isnan(number)]
            return below[0] if below else math.nan
        case Sym(kind="op", parts=("Pow", Sym() as base, Const(value=int() as power))):
            return float(_at_half(base) ** power)
        case Sym(kind="op", parts=("Mult", Sym() as left, Const(value=int() | float() as factor))):
            return float(_at_half(left) * factor)
    return math.nan


def _open(dtype: object) -> bool:
    """Whether a dtype is not decided by the code: it is that of whatever tensor comes."""
    return isinstance(dtype, Sym) or (isinstance(dtype, Choice) and (_open(dtype.yes) or _open(dtype.no)))


def number(constant: Const) -> float:
    assert isinstance(constant.value, int | float)
    return float(constant.value)


def _about_dtype(formula: object) -> bool:
    if isinstance(formula, Sym):
        return formula.kind == "dtype" or any(map(_about_dtype, formula.parts))
    if isinstance(formula, Lib):
        return formula.name.startswith("torch.") and tensors.dtype_of(formula) != ""
    if isinstance(formula, Question):
        return any(map(_about_dtype, formula.parts))
    return isinstance(formula, tuple | frozenset) and any(map(_about_dtype, formula))


def _half(value: Value, trust: int) -> bool:
    """Whether a tensor is (or, under an unknown autocast dtype, may be) float16, as far as it must be trusted."""
    return isinstance(value, Tensor) and value.dtype in ("float16", "low") and value.trust >= trust


def _guarded(event: events.Event) -> bool:
    """Whether a question about a dtype decided that the code runs."""
    return any(_about_dtype(atom) for atom in event.facts)


@rule("AMP401")
def constant_out_of_range(script: Script) -> Iterator[Finding]:
    """A constant beyond float16's range meets a half tensor."""
    for event in script.events(events.Operation):
        if event.name not in _FILLS or _guarded(event):
            continue
        given = event.args if event.name in ("tensor", "as_tensor", "add", "sub") else event.args[1:]
        named = ("value", "min", "max", "fill_value", "data")
        candidates = [*given, *(value for name, value in event.kwargs if name in named)]
        large = [number(one) for value in candidates for one in constants(value) if abs(number(one)) > LARGEST]
        target = _filled(event)
        if not large or target is None or not _half(target, ASSUMED):
            continue
        assert isinstance(target, Tensor)
        if event.name in _SILENT:
            message = (
                f"{large[0]:g} becomes -inf in float16" if large[0] < 0 else f"{large[0]:g} becomes inf in float16"
            )
            message += f" (its range ends at {LARGEST:.0f})"
            if event.name in ("where", "index_put"):
                message += ": a fully masked row turns to nan"
            severity = Severity.WARNING if target.trust == KNOWN else Severity.NOTE
        else:
            message = f"{large[0]:g} does not fit in float16 (range ±{LARGEST:.0f}): RuntimeError on a half tensor"
            severity = Severity.ERROR if target.trust == KNOWN and target.dtype == "float16" else Severity.WARNING
        yield found(
            "AMP401",
            event,
            message,
            severity=severity,
            evidence=_made(script, target),
            help="use torch.finfo(x.dtype).min of the tensor that is filled",
            fix=_limit(event, target),
        )


def _filled(event: events.Operation) -> Tensor | None:
    """The tensor that the constant is written to or added to."""
    if event.name in _MAKES and event.result.dtype:
        return event.result
    operands = (
        event.args[1:] if event.name == "where" else event.args if event.name in ("add", "sub") else event.args[:1]
    )
    return next((value for value in operands if isinstance(value, Tensor)), None)


def _limit(event: events.Operation, target: Tensor) -> Fix | None:
    """The constant in the call → the limit of the filled tensor's dtype."""
    call = event.node
    if not isinstance(call, ast.Call):
        return None
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in ("value", "min", "max"))]
    if isinstance(call.func, ast.Attribute) and event.name in ("masked_fill", "fill", "clamp", "index_fill"):
        tensor: ast.expr = call.func.value
        if isinstance(tensor, ast.Name) and tensor.id in ("torch", "F"):
            tensor = call.args[0]
    elif event.name == "where" and len(call.args) == 3:
        tensor = call.args[1] if isinstance(event.args[1], Tensor) else call.args[2]
    elif event.name == "full_like":
        tensor = call.args[0]
    else:
        return None
    literals = [
        node for node in given if isinstance(node, ast.Constant | ast.UnaryOp | ast.Call) and node is not tensor
    ]
    for node in literals:
        value = _literal(node)
        if value is not None and abs(value) > LARGEST:
            return fixes.finfo_limit(event.module, tensor, node, value < 0, _additive(event))
    return None


def _literal(node: ast.expr) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _literal(operand)
            return None if inner is None else -inner
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as text)]):
            try:
                return float(text)
            except ValueError:
                return None
    return None


def _additive(event: events.Operation) -> bool:
    """Whether the filled tensor itself was made to be added: a mask, not scores."""
    target = event.args[0]
    return isinstance(target, Tensor) and target.made in ("zeros", "zeros_like", "full", "ones")


def _made(script: Script, tensor: Tensor) -> list[tuple[events.Event | None, str]]:
    """Where a tensor became half."""
    for event in script.events(events.Operation):
        if event.result.node is tensor.node and event.result.dtype == tensor.dtype:
            what = "half precision" if tensor.dtype == "low" else tensor.dtype
            where = "under autocast" if event.region is not None else ""
            return [(event, f"{event.name} gives {what} {where}".strip())]
    return []


@rule("AMP403")
def eps_vanishes(script: Script) -> Iterator[Finding]:
    """A small constant that protects from zero is itself zero (or nearly so) in float16."""
    for event in script.events(events.Operation):
        if event.name not in ("add", "clamp", "clamp_min", "maximum", "sub") or _guarded(event):
            continue
        target = next((value for value in event.args if isinstance(value, Tensor)), None)
        if target is not None and any(0 < _at_half(value) < SMALLEST_NORMAL for value in event.args):
            definition = _definition(event)
            yield found(
                "AMP403",
                event,
                "this eps follows the tensor's dtype, but in float16 it is below the smallest normal number (6.1e-05)",
                node=definition,
                severity=Severity.NOTE,
                evidence=[(event, "added to a tensor of that dtype here")] if definition is not None else [],
                help="choose it by dtype: 1e-7 is still a (subnormal) number in float16, finfo.tiny a normal one",
            )
        if target is None or not _half(target, GIVEN):
            continue
        others = [value for value in event.args if value is not target]
        others += [value for name, value in event.kwargs if name in ("min", "other")]
        small = [one for value in others for one in constants(value) if 0 < number(one) < SMALLEST_NORMAL]
        if not small:
            continue
        eps = min(small, key=number)
        module = event.module
        place = eps.node if eps.node in module.parents else None
        elsewhere = place is not None and module.range(place).start.row != module.range(event.node).start.row
        use = [(event, "added to a half tensor here")] if elsewhere else []
        if number(eps) <= VANISHES:
            severity = Severity.NOTE
            if target.trust == KNOWN:
                severity = Severity.ERROR if target.dtype == "float16" else Severity.WARNING
            yield found(
                "AMP403",
                event,
                f"{number(eps):g} is zero in float16 (anything up to 3e-8 is): it protects nothing from being zero",
                node=place,
                severity=severity,
                evidence=[*_made(script, target), *use],
                help="add it to a float32 tensor: x.float() + eps",
                fix=_in_float32(event, target),
            )
        elif _divides(script, event.result):
            yield found(
                "AMP403",
                event,
                f"{number(eps):g} is below float16's smallest normal number (6.1e-05), and the tensor it is added "
                f"to has about "
                "three digits: the result is imprecise where it matters",
                node=place,
                severity=Severity.NOTE,
                evidence=[*_made(script, target), *use],
                help="compute it in float32, or use a larger eps for float16",
            )


def _definition(event: events.Event) -> ast.AST | None:
    """The torch.finfo expression that a name in an operation was last assigned before it, in the same function."""
    module = event.module
    names = {node.id for node in ast.walk(event.node) if isinstance(node, ast.Name)}
    found = None
    for node in ast.walk(module.function(event.node) or module.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in names:
                if node.lineno < event.node.lineno and "finfo" in text(module, value):  # type: ignore[attr-defined]
                    found = value
    return found


def _in_float32(event: events.Operation, target: Tensor) -> Fix | None:
    node = event.node
    match node:
        case ast.BinOp():
            return fixes.eps_in_float32(event.module, node.left if event.args[0] is target else node.right)
        case ast.Call(func=ast.Attribute(value=tensor)) if event.args[0] is target and event.name.startswith("clamp"):
            if isinstance(tensor, ast.Name) and tensor.id in ("torch", "F") and node.args:
                return fixes.eps_in_float32(event.module, node.args[0])
            return fixes.eps_in_float32(event.module, tensor) if not _in_place(node) else None
    return None


def _in_place(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_")


def _divides(script: Script, result: Tensor) -> bool:
    """Whether a result is divided by, or its root or logarithm is taken."""
    for event in script.events(events.Operation):
        operands = [arg for arg in event.args if isinstance(arg, Tensor) and arg.node is result.node]
        if operands and (
            event.name in ("rsqrt", "sqrt", "log", "reciprocal", "pow")
            or (event.name == "div" and len(event.args) > 1 and event.args[1] in operands)
        ):
            return True
    return False


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
        if not _half(left, ASSUMED) or not _becomes_weights(script, event.result):
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
            evidence=_made(script, left),
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
        if not isinstance(above, Tensor) or not isinstance(below, Tensor) or not _half(above, ASSUMED):
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

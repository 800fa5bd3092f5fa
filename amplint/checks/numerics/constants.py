"""Constants beyond float16's range: masks and fills."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amplint.checks.around import may_run_in_float16, runs_in_half
from amplint.checks.numerics.common import LARGEST, constants, float16, guarded, is_half, known_as, made_half, number
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.operations import FILLED
from amplint.source.interpret.promotion import has_no_dimension
from amplint.source.tree import last_name
from amplint.source.values import ASSUMED, KNOWN, Const, Sym, Tensor, Value
from amplint.source.walk import walk

_FILLS = frozenset(
    "masked_fill fill clamp index_fill pad full full_like where index_put tensor as_tensor add sub".split()
)
# What raises on every device, and what on one of them (measured: torch 2.13 on a CPU, 2.11 on an H200); the others make
# an infinity without an error.
_LOUD = frozenset("masked_fill fill index_fill pad full full_like clamp".split())
_RAISES = {"cpu": _LOUD, "cuda": _LOUD - {"clamp"} | {"where"}}

_BOUNDED = frozenset(("sigmoid", "hardsigmoid", "tanh"))
_PASSES = frozenset("add div squeeze unsqueeze view reshape flatten transpose permute contiguous".split())


@rule("AMP401")
def constant_out_of_range(script: Script) -> Iterator[Finding]:
    """A constant beyond float16's range meets a half tensor."""
    for event in script.events(events.Operation):
        if event.name not in _FILLS or guarded(event):
            continue
        given = event.args if event.name in ("tensor", "as_tensor", "add", "sub") else event.args[1:]
        named = ("value", "min", "max", "fill_value", "data")
        candidates = [*given, *(value for name, value in event.kwargs if name in named)]
        large = [number(one) for value in candidates for one in constants(value) if abs(number(one)) > LARGEST]
        target = _filled(event)
        if not large or target is None or not is_half(target, ASSUMED):
            continue
        assert isinstance(target, Tensor)
        raises = _raises(script, event)
        sure = raises and target.trust == KNOWN
        if event.name not in _LOUD and not sure and _saturates(script, event.result):
            continue
        if raises:
            message = f"{large[0]:g} does not fit in float16 (range ±{LARGEST:.0f}): RuntimeError on a half tensor"
            severity = Severity.ERROR if target.trust == KNOWN and target.dtype == "float16" else Severity.WARNING
            if target.trust == ASSUMED and (event.name not in _LOUD or not _in_float16(script, event)):
                severity = Severity.NOTE
        elif event.name == "clamp":
            message = f"{large[0]:g} is infinite in float16: it bounds nothing there, and raises on a CPU"
            severity = Severity.NOTE
        else:
            infinity = "-inf" if large[0] < 0 else "inf"
            message = f"{large[0]:g} becomes {infinity} in float16 (its range ends at {LARGEST:.0f})"
            if event.name in ("where", "index_put"):
                message += ": a fully masked row turns to nan"
            severity = Severity.WARNING if target.trust == KNOWN else Severity.NOTE
        yield found(
            "AMP401",
            event,
            message,
            severity=severity,
            evidence=made_half(script, target),
            help="use torch.finfo(x.dtype).min of the tensor that is filled"
            if not event.name.startswith(("clamp", "clip"))
            else f"use torch.finfo(x.dtype).{'min' if large[0] < 0 else 'max'} of the tensor that is clamped",
            fix=_limit(event),
        )


def _in_float16(script: Script, event: events.Operation) -> bool:
    """Whether the project says that something runs in half precision, what uses this too, and that it may be
    float16."""
    return may_run_in_float16(script) and runs_in_half(script, event.node)


def _raises(script: Script, event: events.Operation) -> bool:
    """Whether a number beyond float16's range raises there."""
    return event.name in _RAISES["cpu" if script.settings.target_device == "cpu" else "cuda"]


@rule("AMP401")
def mask_times_a_constant(script: Script) -> Iterator[Finding]:
    """A mask is multiplied with a constant beyond float16's range in float16, or the product is added in place to what
    is float16: `(1 - mask.half()) * -1e9`, `scores += (1 - mask) * -1e9`."""
    for event in script.events(events.Operation):
        if event.name not in ("mul", "add", "sub") or len(event.args) != 2 or guarded(event):
            continue
        if event.name == "mul":
            factor, target = (
                _large_factor(event.args),
                next((v for v in event.args if _is_mask(v) or _is_ones(v)), None),
            )
        else:  # what is not in place takes the dtype of the mask, if that is float32
            product = event.args[1]
            factor, target = 0.0, event.args[0] if isinstance(event.node, ast.AugAssign) else None
            match product:
                case Sym(kind="op", parts=("Mult", *factors)):
                    factor = _large_factor([one for one in factors if isinstance(one, Value)])
                case Tensor(made="mul", parents=factors) if product.dtype not in tensors.HALF:
                    factor = _large_factor(factors)
        if not factor or target is None or not is_half(target, ASSUMED):
            continue
        assert isinstance(target, Tensor)
        infinity = "inf" if (factor > 0) is not (event.name == "sub") else "-inf"
        if _saturates(script, event.result):
            continue
        what = "ones" if _is_ones(target) else "the mask"
        yield found(
            "AMP401",
            event,
            f"{factor:g} times {what} becomes {infinity} in float16 (its range ends at {LARGEST:.0f}): a fully "
            "masked row turns to nan",
            severity=known_as(target.trust),
            evidence=made_half(script, target),
            help="fill instead: scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)",
        )


def _saturates(script: Script, result: Tensor) -> bool:
    """Whether all that a tensor goes into takes its infinities for what they stand for: the sigmoid of -inf is 0, with
    a gradient of 0. A helper that is called twice leads back to where it was: each place is looked at once."""
    reached, pending = {result.node}, [result.node]
    while pending:
        place = pending.pop()
        uses = [
            event
            for event in script.events(events.Operation)
            if event.result.node is not place
            and any(isinstance(one, Tensor) and one.node is place for one in event.args)
        ]
        if not uses or not all(event.name in _BOUNDED or event.name in _PASSES for event in uses):
            return False
        further = {event.result.node for event in uses if event.name in _PASSES} - reached
        reached |= further
        pending += further
    return True


def _large_factor(values: Sequence[Value]) -> float:
    """The constant beyond float16's range among factors, or 0."""
    return next((number(one) for value in values for one in constants(value) if abs(number(one)) > LARGEST), 0.0)


def _is_mask(value: Value, depth: int = 3) -> bool:
    """Whether a tensor is ones and zeros, going by how it was made: a cast of a comparison, 1 - x, or a cast to half of
    what is called a mask."""
    match value:
        case Tensor(made="sub", parents=(Const(value=1 | 1.0), *_)):
            return True
        case Tensor(dtype="bool"):
            return True
        case Tensor(made="half" | "to" | "type" | "type_as", node=ast.Call(func=function)):
            return _called_mask(function) or any(_is_mask(part, depth - 1) for part in value.parents[:depth])
    return False


def _is_ones(value: Value) -> bool:
    """Whether a tensor holds a one everywhere: times a constant it is what `torch.where` fills in."""
    return isinstance(value, Tensor) and value.made in ("ones", "ones_like", "new_ones")


def _called_mask(node: ast.AST) -> bool:
    return any("mask" in last_name(one).lower() for one in walk(node))


def _filled(event: events.Operation) -> Tensor | None:
    """The tensor that the constant is written to or added to."""
    if event.name in FILLED and event.result.dtype:
        return event.result
    operands = (
        event.args[1:] if event.name == "where" else event.args if event.name in ("add", "sub") else event.args[:1]
    )
    return next((value for value in operands if isinstance(value, Tensor) and not has_no_dimension(value)), None)


def _limit(event: events.Operation) -> Fix | None:
    """The constant in the call → the limit of the filled tensor's dtype."""
    call = event.node
    if not isinstance(call, ast.Call):
        return None
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in ("value", "min", "max"))]
    if isinstance(call.func, ast.Attribute) and event.name in ("masked_fill", "fill", "clamp", "index_fill"):
        tensor: ast.expr | None = call.func.value
        if isinstance(tensor, ast.Name) and tensor.id in ("torch", "F"):
            tensor = next(iter(call.args), None)
    elif event.name == "where" and len(call.args) == 3:
        tensor = call.args[1] if isinstance(event.args[1], Tensor) else call.args[2]
    else:
        tensor = next(iter(call.args), None) if event.name == "full_like" else None
    if tensor is None:
        return None
    written = ast.Constant | ast.UnaryOp | ast.BinOp | ast.Call
    literals = [node for node in given if isinstance(node, written) and node is not tensor]
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
        case ast.BinOp(left=left, op=ast.Pow() | ast.Add() | ast.Sub() as operator, right=right):  # -2 ** 32 + 1
            first, second = _literal(left), _literal(right)
            if first is None or second is None:
                return None
            if isinstance(operator, ast.Pow):
                return first**second if 0 < first <= 16 and 0 <= second <= 64 else None
            return first + second if isinstance(operator, ast.Add) else first - second
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as text)]):
            try:
                return float(text)
            except ValueError:
                return None
    return None


def _additive(event: events.Operation) -> bool:
    """Whether the filled tensor itself was made to be added: a mask, not scores."""
    target = next(iter(event.args), None)
    return isinstance(target, Tensor) and target.made in ("zeros", "zeros_like", "full", "ones")


@rule("AMP402")
def finfo_of_wrong_dtype(script: Script) -> Iterator[Finding]:
    """A half tensor is filled with the limit of another dtype."""
    for event in script.events(events.Operation):
        if event.name not in _FILLS or guarded(event):
            continue
        target = _filled(event)
        trust = float16(script, target) if target is not None else None
        given = [*event.args, *(value for name, value in event.kwargs if name in ("value", "min", "max", "fill_value"))]
        limit = next((one for value in given if value is not target and (one := _limit_of(value))), "")
        if not limit or target is None or trust is None:
            continue
        raises = _raises(script, event)
        yield found(
            "AMP402",
            event,
            f"the limits of {limit} are not those of this float16 tensor: "
            + ("RuntimeError, the value does not fit" if raises else "the value becomes inf"),
            severity=(Severity.ERROR if raises else Severity.WARNING) if trust == KNOWN else Severity.NOTE,
            evidence=made_half(script, target),
            help="torch.finfo(x.dtype) of the tensor x that is filled",
            fix=_own_limit(event),
        )


def _limit_of(value: Value) -> str:
    """The dtype whose largest or smallest number a value is, if float16 does not hold it."""
    match value:
        case Sym(kind="attr", parts=(Sym(kind="finfo", parts=(Value() as dtype,)), "min" | "max")):
            name = tensors.dtype_of(dtype)
            return name if name in ("float32", "float64", "bfloat16") else ""
        case Sym(kind="unary", parts=("USub", Value() as inner)):
            return _limit_of(inner)
    return ""


def _own_limit(event: events.Operation) -> Fix | None:
    """The finfo in the call → that of the filled tensor."""
    call = event.node
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    tensor = call.func.value
    limits = [
        node
        for node in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(node, ast.Attribute) and node.attr in ("min", "max") and isinstance(node.value, ast.Call)
    ]
    if len(limits) != 1 or event.name not in ("masked_fill", "fill", "index_fill"):
        return None
    return fixes.finfo_of(event.module, tensor, limits[0])

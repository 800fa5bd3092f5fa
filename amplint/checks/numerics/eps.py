"""Small constants that protect from zero, and are zero in float16."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator

from amplint.checks.numerics.common import (
    SMALLEST_NORMAL,
    VANISHES,
    constants,
    guarded,
    is_half,
    made_half,
    number,
)
from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.tree import names_in
from amplint.source.values import GIVEN, KNOWN, Choice, Const, Sym, Tensor, Value
from amplint.source.walk import walk

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


@rule("AMP403")
def eps_vanishes(script: Script) -> Iterator[Finding]:
    """A small constant that protects from zero is itself zero (or nearly so) in float16."""
    for event in script.events(events.Operation):
        if event.name not in ("add", "clamp", "clamp_min", "maximum", "sub") or guarded(event):
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
        if target is None or not is_half(target, GIVEN):
            continue
        others = [value for value in event.args if value is not target]
        others += [value for name, value in event.kwargs if name in ("min", "other")]
        small = [one for value in others for one in constants(value) if 0 < number(one) < SMALLEST_NORMAL]
        if not small:
            continue
        eps = min(small, key=number)
        module = event.module
        if _TOLERANCE.search(text(module, event.node, 200)):
            continue  # of a comparison, not a guard
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
                evidence=[*made_half(script, target), *use],
                help="add it to a float32 tensor: x.float() + eps",
                fix=_in_float32(event, target),
            )
        elif event.grad and _divides(script, event.result):  # what overflows there is the slope
            yield found(
                "AMP403",
                event,
                f"{number(eps):g} is below float16's smallest normal number (6.1e-05), and the tensor it is added "
                "to has about three digits: the result is imprecise where it matters",
                node=place,
                severity=Severity.NOTE,
                evidence=[*made_half(script, target), *use],
                help="compute it in float32, or use a larger eps for float16",
            )


@rule("AMP403")
def one_is_reached(script: Script) -> Iterator[Finding]:
    """A bound that keeps probabilities below 1, for log(1 - p), rounds to 1 in half precision."""
    for event in script.events(events.Operation):
        if event.name not in ("clamp", "clamp_max", "minimum") or guarded(event):
            continue
        target = event.args[0] if event.args else None
        if not isinstance(target, Tensor) or not is_half(target, GIVEN):
            continue
        bounds = [*event.args[1:], *(value for name, value in event.kwargs if name == "max")]
        below = 1 - 2.0 ** (-9 if target.dtype == "bfloat16" else -12)
        tops = [number(one) for value in bounds for one in constants(value) if below <= number(one) < 1]
        log = _log_of_the_rest(script, event.result) if tops else None
        if log is not None:
            known, dtype = target.trust == KNOWN, "bfloat16" if target.dtype == "bfloat16" else "float16"
            yield found(
                "AMP403",
                event,
                f"{tops[0]:g} rounds to 1 in {dtype}: a probability of 1 stays 1, and log(1 - p) is -inf",
                severity=Severity.ERROR if known else Severity.NOTE,
                evidence=[*made_half(script, target), (log, "the logarithm of 1 - p is taken here")],
                help="bound it in float32: p.float()",
                fix=_in_float32(event, target),
            )


def _log_of_the_rest(script: Script, result: Tensor) -> events.Operation | None:
    """Where the logarithm of 1 - result is taken."""
    every = list(script.events(events.Operation))
    rests = [one.result.node for one in every if one.name == "sub" and _is_rest(one, result)]
    return next((one for one in every if one.name == "log" and _is_one_of(one.args[:1], rests)), None)


def _is_rest(event: events.Operation, result: Tensor) -> bool:
    match event.args:
        case (Const(value=1), Tensor() as taken):
            return taken.node is result.node
    return False


def _is_one_of(args: tuple[Value, ...], nodes: list[ast.AST | None]) -> bool:
    return any(isinstance(one, Tensor) and any(one.node is node for node in nodes) for one in args)


_TOLERANCE = re.compile(r"\b(a|r)?tol(erance)?\b")


def _definition(event: events.Event) -> ast.AST | None:
    """The torch.finfo expression that a name in an operation was last assigned before it, in the same function."""
    module = event.module
    names = names_in(event.node)
    found = None
    for node in walk(module.scope(event.node)):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in names:
                if node.lineno < event.node.lineno and "finfo" in text(module, value):  # type: ignore[attr-defined]
                    found = value
    return found


def _in_float32(event: events.Operation, target: Tensor) -> Fix | None:
    node = event.node
    safe = target.trust == KNOWN  # or it may be float64, or a number
    match node:
        case ast.BinOp():
            return fixes.eps_in_float32(event.module, node.left if event.args[0] is target else node.right, safe)
        case ast.Call(func=ast.Attribute(value=tensor)) if event.args[0] is target and event.name.startswith("clamp"):
            if isinstance(tensor, ast.Name) and tensor.id in ("torch", "F") and node.args:
                return fixes.eps_in_float32(event.module, node.args[0], safe)
            return fixes.eps_in_float32(event.module, tensor, safe) if not _in_place(node) else None
    return None


def _in_place(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_")


def _divides(script: Script, result: Tensor) -> bool:
    """Whether a result, or its square root, is divided by, or its logarithm is taken: the slope there is one over it,
    or more. That of a square root alone stays far below float16's largest number."""
    for event in script.events(events.Operation):
        operands = [arg for arg in event.args if isinstance(arg, Tensor) and arg.node is result.node]
        if operands and (
            event.name in ("rsqrt", "log", "reciprocal", "pow")
            or (event.name == "div" and len(event.args) > 1 and event.args[1] in operands)
            or (event.name == "sqrt" and event.result.node is not result.node and _divides(script, event.result))
        ):
            return True
    return False


_DEFAULTS = {"normalize": 1e-12, "cosine_similarity": 1e-8, "pairwise_distance": 1e-6}


@rule("AMP404")
def default_eps_in_half(script: Script) -> Iterator[Finding]:
    """A function whose default eps is zero in float16 is given a float16 tensor."""
    for event in script.events(events.Operation):
        if event.name not in ("normalize", "cosine_similarity") or guarded(event) or event.result.dtype != "float16":
            continue
        given = dict(event.kwargs).get("eps")
        if event.result.trust != KNOWN or (
            given is not None and not any(number(c) <= VANISHES for c in constants(given))
        ):
            continue
        eps = next((number(c) for c in constants(given)), _DEFAULTS[event.name])
        yield found(
            "AMP404",
            event,
            f"the eps of {event.name}, {eps:g}, is zero in float16: a row of zeros gives nan, forward and backward",
            evidence=made_half(script, event.args[0]) if event.args else [],
            help="give it float32, or an eps of 1e-4",
        )

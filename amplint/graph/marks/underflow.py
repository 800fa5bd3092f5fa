"""AMP452: values that a half dtype makes zero: shares of tensors, guards against zero that are zero themselves, and
arguments of logarithms and divisions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from amplint.findings import Severity
from amplint.graph.capture.captured import place_of
from amplint.graph.marks import words
from amplint.graph.marks.facts import VIEWS, Facts, constant, is_number, name, operands, origin, placed
from amplint.graph.marks.mark import SEVERITIES, Mark
from amplint.graph.stats import LIMITS

CODE = "AMP452"
SHARE = 0.1  # of the non-zero values: less is the tail of an ordinary tensor
POLES = frozenset("log log2 log10 rsqrt reciprocal log_".split())


def underflows(facts: Facts, told: set[fx.Node]) -> Iterator[Mark]:
    """`told` is given the nodes that are told of: the values, and the operations that make them infinite."""
    for node in facts.calls():
        if facts.half(node) == torch.float16:
            yield from _guards(node, facts, told)
    for node in facts.calls():
        yield from _poles(node, facts, told)
    flushed: set[fx.Node] = set()
    for node in facts.calls():
        if facts.half(node) is None or facts.flushed(node) <= SHARE or constant(node, facts.ranges) is not None:
            continue
        flushed.add(node)
        before = [one for one in operands(node, facts) if one in flushed or facts.flushed(one) > SHARE]
        if before or node in told or name(node) in ("dropout", "native_dropout"):
            continue
        yield _share(node, facts)


# -- guards -----------------------------------------------------------------------------------------------------------


def _guards(node: fx.Node, facts: Facts, told: set[fx.Node]) -> Iterator[Mark]:
    """An epsilon that is zero in float16, where it keeps a divisor or a logarithm from zero."""
    called, eps = name(node), _eps(node, facts)
    if eps is None or called not in ("add", "clamp", "clamp_min", "maximum", "clip", "where", "masked_fill"):
        return
    held = facts.ranges.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if held is not None and called in ("add", "clamp", "clamp_min", "maximum", "clip") and held.low > 2.0**-20:
        return
    pole = guarded(node)
    if pole is None:
        return
    told.update(
        {node, pole, origin(pole.args[0]), *(origin(one) for one in pole.args[1:2] if isinstance(one, fx.Node))}
    )
    yield Mark(
        CODE,
        "certain",
        node,
        place_of(placed(node)),
        math.log2(eps / 2.0**-25),
        f"{words.number(eps)} is 0 in float16, so nothing keeps the "
        f"{'divisor' if 'div' in name(pole) else f'argument of {words.operation(pole)}'} from 0",
        f"float16 rounds to zero what is at or below {words.number(2.0**-25)}",
        "add an eps of 1e-6 or more (torch.finfo(x.dtype).tiny is 6.1e-5), or compute it in float32: .float() on its "
        "operand",
        Severity.ERROR,
    )


def _eps(node: fx.Node, facts: Facts) -> float | None:
    """The least number added to, or put below, a tensor, if it is zero in float16."""
    called, given = name(node), [*node.args[1:], *node.kwargs.values()]
    if called in ("clamp", "clip"):
        given = [node.kwargs.get("min", node.args[1] if len(node.args) > 1 else None)]
    for value in given:
        if isinstance(value, fx.Node):
            exact = constant(value, facts.ranges)
            value = float(exact) if exact is not None and exact.numel() == 1 and not exact.is_complex() else None
        if is_number(value) and 0 < float(value) <= 2.0**-25:
            return float(value)
    return None


def guarded(node: fx.Node) -> fx.Node | None:
    """The logarithm, root or division whose argument a node's values become."""
    seen, queue, root = {node}, [node], None
    for one in queue:
        for user in one.users:
            called = name(user)
            if called in POLES or (called in ("div", "true_divide") and len(user.args) > 1 and user.args[1] is one):
                return user
            exponent: Any = user.args[1] if called == "pow" and len(user.args) > 1 else None
            if is_number(exponent) and float(exponent) < 0:
                return user
            root = root or (user if called == "sqrt" and one is node else None)
            if user not in seen and called in VIEWS | {"sqrt", "mul"}:
                seen.add(user)
                queue.append(user)
    return root  # whose gradient is infinite at zero


# -- logarithms and divisions -----------------------------------------------------------------------------------------


def _poles(node: fx.Node, facts: Facts, told: set[fx.Node]) -> Iterator[Mark]:
    """log(p) where some p, not zero in float32, are zero in half."""
    called = name(node)
    if called in POLES:
        argument: Any = node.args[0]
    elif called in ("div", "true_divide") and len(node.args) > 1:
        argument = node.args[1]
    else:
        return
    source = origin(argument)
    if not isinstance(source, fx.Node) or source.op != "call_function" or source in told:
        return
    held = next((one for one in _chain(argument) if facts.half(one)), None)
    if held is None:
        return
    dtype = facts.half(held) or torch.float16
    least, share = _least(source, dtype, facts)
    if not share:
        return
    told.update({source, node})
    verdict = "calibrated" if facts.stats(source) else "likely"
    name_of_dtype = words.dtype_name(dtype)
    yield Mark(
        CODE,
        verdict,
        source,
        place_of(placed(source)),
        math.log2(least / 2.0 ** LIMITS[dtype].zero) if least else None,
        f"{words.operation(source)} is 0 in {name_of_dtype} for {_percent(share)} of its values, which "
        f"{words.operation(node)} then makes infinite",
        f"values down to {words.number(least)}" if least else "",
        _pole_remedy(source),
        SEVERITIES[verdict],
    )


def _chain(node: Any) -> Iterator[fx.Node]:
    """A node and those behind it whose values it has."""
    end = origin(node)
    while isinstance(node, fx.Node):
        yield node
        if node is end:
            return
        node = node.args[0]


def _least(source: fx.Node, dtype: torch.dtype, facts: Facts) -> tuple[float, float]:
    """The smallest value other than zero, and the share that half makes zero, where there is any."""
    if stats := facts.stats(source):
        return stats.tiny, stats.flushed(dtype)
    found = facts.ranges.get(source)
    value = source.meta.get("val")
    count = value.numel() if isinstance(value, torch.Tensor) else 0
    if found is None or dtype != torch.float16:
        return 0.0, 0.0
    if name(source) == "sigmoid" and isinstance(source.args[0], fx.Node):
        size = facts.largest(source.args[0])
        return (math.exp(-size), 1 / max(count, 1)) if size and size > 25 * math.log(2) else (0.0, 0.0)
    positive = found.low >= -(2.0**-20)  # else its zeros are no poles that half has made
    return 0.0, (found.tiny or 0.0) if positive and (found.tiny or 0.0) * count >= 0.5 else 0.0


def _pole_remedy(source: fx.Node) -> str:
    if name(source) == "sigmoid":
        return "use torch.nn.functional.logsigmoid on the logits, which is finite everywhere"
    if name(source) in ("softmax", "_softmax"):
        return "use log_softmax on the logits"
    return f"compute {words.operation(source)} in float32: .float() on its operand; or add an eps of 1e-6 or more"


# -- shares -----------------------------------------------------------------------------------------------------------


def _share(node: fx.Node, facts: Facts) -> Mark:
    """A tensor much of which becomes zero. It is told as a note where larger values beside them decide the result."""
    dtype, share, size = words.dtype_name(facts.half(node) or torch.float16), facts.flushed(node), facts.largest(node)
    stats, pole = facts.stats(node), guarded(node)
    verdict = "calibrated" if stats else "likely"
    least = stats.tiny if stats else 0.0
    tiny = size is not None and size < 2.0**-14  # nothing of it is held well
    severity = SEVERITIES[verdict] if tiny or pole is not None else Severity.NOTE
    message = f"{_percent(share)} of what {words.operation(node)} gives is 0 in {dtype}"
    if pole is not None:
        message += f", and {words.operation(pole)} divides by it" if "div" in name(pole) else ""
    known = [f"values from {words.number(least)}" if least else "", f"up to {words.number(size)}" if size else ""]
    cause = " ".join(filter(None, known))
    return Mark(
        CODE,
        verdict,
        node,
        place_of(placed(node)),
        math.log2(least / 2.0**-25) if least else None,
        message,
        cause or words.grown(node, facts),
        "scale its operands up, or compute it in float32: .float() on its operands; or train in bfloat16",
        severity,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"

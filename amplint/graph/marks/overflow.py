"""AMP451: values that a half dtype cannot hold, at the node where they first arise."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from amplint.findings import Severity
from amplint.graph.capture.captured import place_of
from amplint.graph.casting import Cast
from amplint.graph.marks import words
from amplint.graph.marks.facts import Facts, constant, is_number, name, operands, origin, placed
from amplint.graph.marks.mark import SEVERITIES, Mark
from amplint.graph.ranges.domain import Range
from amplint.graph.stats import LIMITS

CODE = "AMP451"
MARGIN = 4.0  # a batch's largest value within 2 bits of the limit: the next batch may go beyond
NEAR = 16.0  # within 4 bits: a note
WRITES = {  # where a number is written into the result as it is
    "masked_fill": ("value",),
    "full": ("fill_value",),
    "full_like": ("fill_value",),
    "new_full": ("fill_value",),
    "fill": ("value",),
    "where": ("self", "other"),
    "scalar_tensor": ("s",),
    "constant_pad_nd": ("value",),
    "pad": ("value",),
    "index_fill": ("value",),
}
# Give of an infinity what they give of any large value.
SATURATE = frozenset(
    "sigmoid tanh hardtanh relu6 hardsigmoid erf gt lt ge le eq ne isinf isnan isfinite sign argmax argmin".split()
)


def overflows(facts: Facts, poles: Container[fx.Node] = ()) -> Iterator[Mark]:
    """`poles`: divisions whose divisor is told to be zero."""
    reached: dict[fx.Node, fx.Node] = {}  # a node beyond the limit → the marked one that it follows
    followers: dict[fx.Node, int] = {}
    found: dict[fx.Node, Mark] = {}
    for node in facts.calls():
        if facts.half(node) is None:
            continue
        written = _written(node, facts)
        cast = _cast(node, facts)  # inf in a product gives nan, which nothing hides
        mark = written or cast or _beyond(node, facts)
        if mark is None:
            continue
        before = [one for one in operands(node, facts) if _same_kind(one, node, mark, facts)]
        if before and written is None:
            root = next((reached[one] for one in before if one in reached), None)
            if root is not None:
                reached[node] = root
                followers[root] = followers.get(root, 0) + 1
            continue
        reached[node] = node
        if written or cast or not (node in poles or harmless(node, facts)):
            found[node] = mark
    for node, mark in found.items():
        count = followers.get(node, 0)
        more = f"; {count} later node{'s' * (count > 1)} reached" if count and mark.verdict != "tight" else ""
        yield replace(mark, cause=mark.cause + more)


def _same_kind(operand: fx.Node, node: fx.Node, mark: Mark, facts: Facts) -> bool:
    """Whether an operand is as near to its limit as the node: the mark is there already."""
    if facts.half(operand) is None:
        return False
    if _written(operand, facts):
        return True
    size = facts.largest(operand) if not facts.safe(operand) else None
    if size is None:
        return False
    own = facts.largest(node) or 0.0
    limit = facts.limit(node)
    bound = limit if own >= limit or mark.verdict in ("certain", "likely") else limit / MARGIN
    return size >= (bound if mark.verdict != "tight" else limit / NEAR)


def _beyond(node: fx.Node, facts: Facts) -> Mark | None:
    """A node whose own values leave the range, or come near."""
    held, limit, size = facts.ranges.get(node), facts.limit(node), facts.largest(node)
    if facts.safe(node):
        return None
    if constant(node, facts.ranges) is not None and held is not None and not held.infinite:
        return _mark(node, "certain", size, facts) if size is not None and limit <= size < math.inf else None
    if held is not None and not held.masked and (held.low >= limit or held.high <= -limit):
        if _is_mask(node, held):
            return _number(node, math.copysign(size or held.low, held.low), False, facts)
        return _mark(node, "certain", max(size or 0.0, min(abs(held.low), abs(held.high))), facts)
    if size is None or math.isinf(size):
        return None
    if facts.measured(node):
        verdict = "calibrated" if size >= limit / MARGIN else "tight"
    else:
        verdict = "likely" if size >= limit else "tight"
    return _mark(node, verdict, size, facts) if size >= limit / NEAR else None


def _mark(node: fx.Node, verdict: str, size: float | None, facts: Facts) -> Mark:
    limit, dtype = facts.limit(node), words.dtype_name(facts.half(node) or torch.float16)
    headroom = math.log2(limit / size) if size else 0.0
    what = words.operation(node)
    if headroom < 0:
        message = f"{what} overflows {dtype}: values up to {words.number(size or 0)}, {words.bits(headroom)} beyond"
    else:
        message = f"{what} comes near {dtype}'s limit: values up to {words.number(size or 0)}, "
        message += f"{words.bits(headroom)} below"
    return Mark(
        CODE,
        verdict,
        node,
        place_of(placed(node)),
        headroom,
        f"{message} {_limit_name(dtype)}",
        words.grown(node, facts),
        words.remedy(node, facts),
        SEVERITIES[verdict],
    )


def _limit_name(dtype: str) -> str:
    return "65504" if dtype == "float16" else "3.4e38"


def _written(node: fx.Node, facts: Facts) -> Mark | None:
    """A finite number, written into a half tensor, that is infinite there: a mask of -1e9."""
    limit, dtype = facts.limit(node), facts.half(node)
    schema = getattr(node.target, "_schema", None)
    if dtype is None or schema is None or name(node) not in WRITES:
        return None
    given: dict[str, Any] = {one.name: value for one, value in zip(schema.arguments, node.args, strict=False)}
    given |= node.kwargs
    for key in WRITES[name(node)]:
        value = given.get(key)
        if isinstance(value, fx.Node):
            exact = constant(value, facts.ranges)
            value = float(exact) if exact is not None and exact.numel() == 1 and not exact.is_complex() else None
        if is_number(value) and limit <= abs(number := float(value)) < math.inf:
            return _number(node, number, name(node) != "where", facts)
    return None


def _is_mask(node: fx.Node, held: Range) -> bool:
    """Whether a tensor holds one number, which where() writes: -9e15 * torch.ones_like(x)."""
    written = all(name(user) == "where" and node in user.args[1:] for user in node.users)
    return written and math.isclose(held.low, held.high, rel_tol=0.01)


def _number(node: fx.Node, number: float, refused: bool, facts: Facts) -> Mark:
    """`refused`: torch raises."""
    dtype = facts.half(node) or facts.captured.precision.dtype
    name_of_dtype = words.dtype_name(dtype)
    return Mark(
        CODE,
        "certain",
        node,
        place_of(placed(node)),
        math.log2(facts.limit(node) / abs(number)),
        f"{words.number(number)} does not fit into {name_of_dtype}, which ends at {_limit_name(name_of_dtype)}",
        f"torch refuses to write it (value cannot be converted to type {_C10.get(dtype, 'Half')} without overflow)"
        if refused
        else "it is inf there, and a row that is masked throughout becomes nan",
        _mask_remedy(number),
        Severity.ERROR if refused else Severity.WARNING,
    )


_C10 = {torch.float16: "c10::Half", torch.bfloat16: "c10::BFloat16"}


def _mask_remedy(value: float) -> str:
    if value < 0:
        return (
            "use torch.finfo(x.dtype).min of the tensor's own dtype, or float('-inf') where no row is masked throughout"
        )
    return "use torch.finfo(x.dtype).max of the tensor's own dtype"


def _cast(node: fx.Node, facts: Facts) -> Mark | None:
    """An operand in float32 that autocast makes infinite on its way into the node."""
    for cast in facts.casts:
        if cast.users[0] is not node:
            continue
        limit, held, size = LIMITS[cast.dtype].overflow, facts.ranges.get(cast.source), _size(cast, facts)
        what = facts.captured.kinds.get(cast.source.name)
        masked = held is not None and held.masked and what != "parameter"  # a weight is no mask, however negative
        if size is None or math.isinf(size) or size < limit or masked:
            continue
        sound = held is not None and (held.exact is not None or held.low >= limit or held.high <= -limit)
        verdict = "certain" if sound else "calibrated" if facts.measured(cast.source) else "likely"
        if not sound and facts.safe(cast.source):
            continue
        said = f"the {what}" if what else f"the result of {words.operation(cast.source)}"
        headroom, dtype = math.log2(limit / size), words.dtype_name(cast.dtype)
        return Mark(
            CODE,
            verdict,
            node,
            place_of(placed(node)),
            headroom,
            f"{words.operation(node)} casts {said} to {dtype}, where it overflows: values up to {words.number(size)}, "
            f"{words.bits(headroom)} beyond {_limit_name(dtype)}",
            _why(held),
            f"autocast casts the operands of {words.operation(node)}: turn it off around it (enabled=False), or make "
            "the operand smaller first",
            SEVERITIES[verdict],
        )
    return None


def _size(cast: Cast, facts: Facts) -> float | None:
    return facts.largest(cast.source)


def _why(held: Range | None) -> str:
    return f"{held.why[0]} {words.number(held.why[1])}" if held and held.why else ""


def harmless(node: fx.Node, facts: Facts) -> bool:
    """Whether all that use a node's values give of an infinity what they give of a large number."""
    held = facts.ranges.get(node)
    falling = held is not None and held.high < facts.limit(node)  # it can be -inf, never inf
    return bool(node.users) and all(_harmless(user, node, falling, facts) for user in node.users)


def _harmless(user: fx.Node, node: fx.Node, falling: bool, facts: Facts) -> bool:
    called = name(user)
    if called in SATURATE or (falling and called in ("softmax", "_softmax", "relu", "exp", "amax", "max")):
        return True
    if called in ("clamp", "clip"):
        low, high = (*user.args[1:], None, None)[:2]
        high = user.kwargs.get("max", high)
        low = user.kwargs.get("min", low)
        return high is not None and (low is not None or not falling)
    if origin(user) is not user and origin(user) is origin(node) and user.args[0] is node:
        return harmless(user, facts)
    return False

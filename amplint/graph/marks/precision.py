"""AMP453: results that half precision's 11 bits (bfloat16: 8) spoil without leaving its range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from amplint.findings import Severity
from amplint.graph.capture.captured import dtype_of, place_of
from amplint.graph.marks import words
from amplint.graph.marks.facts import Facts, constant, is_number, name, origin, placed
from amplint.graph.marks.mark import SEVERITIES, Mark

CODE = "AMP453"
BITS = {torch.float16: 11, torch.bfloat16: 8}  # of a number, the leading one among them
INTEGERS = {torch.float16: 2048, torch.bfloat16: 256}  # exact up to here
KEPT = 4  # bits of a difference's operands that must be left in it
TERMS = 64  # added one after another in half
ANGLE = 0.05  # radians: an angle's rounding that is no longer small


def losses(facts: Facts) -> Iterator[Mark]:
    chains: dict[fx.Node, int] = {}
    told: set[fx.Node] = set()
    for node in facts.calls():
        for look in (_integers, _angles, _saturated, _cancelled):
            mark = look(node, facts)
            if mark is not None and mark.node not in told:
                told.add(mark.node)
                yield mark
        yield from _accumulated(node, facts, chains)


def _mark(
    about: str, node: fx.Node, verdict: str, message: str, cause: str, remedy: str, lost: float | None = None
) -> Mark:
    severity = SEVERITIES[verdict]
    return Mark(CODE, verdict, node, place_of(placed(node)), lost, message, cause, remedy, severity, about=about)


def _integers(node: fx.Node, facts: Facts) -> Mark | None:
    """Positions, indices and counts where they become half, and halves that become indices."""
    target = dtype_of(node)
    for source, dtype in _becoming(node, facts):
        size = _count(source, dtype, facts)
        if size is not None:
            name_of_dtype, most = words.dtype_name(dtype), INTEGERS[dtype]
            return _mark(
                "integers",
                node,
                "likely" if constant(source, facts.ranges) is None else "certain",
                f"integers up to {words.number(size)} become {name_of_dtype}, which holds them exactly to {most}",
                f"{words.number(size)} is rounded to a multiple of {_step(size, dtype)}",
                "keep them in float32: compute what follows with autocast off (enabled=False) and .float() operands",
                math.log2(most / size),
            )
    first = node.args[0] if node.args else None
    if target in (torch.int64, torch.int32) and isinstance(first, fx.Node) and (half := facts.half(first)):
        size, held = facts.largest(first), facts.ranges.get(first)
        if size is not None and INTEGERS[half] < size < 2.0**31 and held is not None and not held.masked:
            return _mark(
                "integers",
                node,
                "calibrated" if facts.stats(first) else "likely",
                f"an index up to {words.number(size)} is computed in {words.dtype_name(half)}, which holds integers "
                f"exactly to {INTEGERS[half]}",
                f"{words.number(size)} is rounded to a multiple of {_step(size, half)}",
                "compute indices in integers, or in float32: .float() on the operand",
                math.log2(INTEGERS[half] / size),
            )
    return None


def _becoming(node: fx.Node, facts: Facts) -> Iterator[tuple[fx.Node, torch.dtype]]:
    """What becomes half in a node: an operand that is none, or is cast by autocast; what a factory fills."""
    half = facts.half(node)
    if half and name(node) in ("_to_copy", "to", "type_as"):
        first = node.args[0]
        if isinstance(first, fx.Node) and facts.half(first) is None:
            yield first, half
    elif half and name(node) in ("arange", "linspace"):
        yield node, half
    elif half and name(node) in ("mul", "add", "sub", "div"):  # half with int64 gives half
        for one in node.all_input_nodes:
            kind = dtype_of(one)
            if kind is not None and not kind.is_floating_point and kind != torch.bool and words.shape(one):
                yield one, half
    for cast in facts.casts:
        if cast.users[0] is node and facts.captured.kinds.get(cast.source.name) != "parameter":
            yield cast.source, cast.dtype


def _count(source: fx.Node, dtype: torch.dtype, facts: Facts) -> float | None:
    """The largest of integers that half does not hold exactly; None for what is not made of integers."""
    exact, kind = constant(source, facts.ranges), dtype_of(source)
    if exact is None:
        exact = _given(source, facts)
    if isinstance(exact, Tensor) and exact.numel() > 1 and not exact.is_complex():
        if exact.dtype == torch.bool:
            return None
        data = exact.detach()
        size = float(data.abs().max())
        if not INTEGERS[dtype] < size < 2.0**31 or size >= torch.finfo(dtype).max:
            return None
        whole = data.double()
        if bool((whole == whole.round()).all()) and bool((whole.to(dtype).double() != whole).any()):
            return size
        return None
    if exact is None and kind is not None and not kind.is_floating_point and kind != torch.bool:
        most = facts.ranges[source].amax if source in facts.ranges else None
        return most if most is not None and INTEGERS[dtype] < most < torch.finfo(dtype).max else None
    return None


def _given(source: fx.Node, facts: Facts) -> Tensor | None:
    """The batch's own values, where a node has them: positions that the caller gives."""
    first = origin(source)
    value = facts.captured.values.get(first.name) if isinstance(first, fx.Node) and first.op == "placeholder" else None
    plain = isinstance(value, Tensor) and not value.is_meta and value.layout is torch.strided
    return value if plain else None


def _step(size: float, dtype: torch.dtype) -> int:
    return int(2.0 ** (math.floor(math.log2(size)) + 1 - BITS[dtype]))


def _angles(node: fx.Node, facts: Facts) -> Mark | None:
    """sin and cos of large half angles."""
    first = node.args[0] if node.args else None
    if name(node) not in ("sin", "cos") or not isinstance(first, fx.Node):
        return None
    half = facts.half(first) or facts.half(origin(first))
    size = facts.largest(first)
    if half is None or size is None:
        return None
    rounding = 2.0 ** (math.floor(math.log2(size)) - BITS[half]) if size else 0.0
    if rounding < ANGLE:
        return None
    return _mark(
        "angles",
        origin(first) if facts.half(origin(first)) and place_of(origin(first)) else node,
        "calibrated" if facts.stats(first) else "likely",
        f"angles up to {words.number(size)} rad are rounded to {words.dtype_name(half)} before {words.operation(node)}",
        f"the rounding is up to {words.number(rounding)} rad",
        "compute angles in float32: autocast off (enabled=False) around their product, with .float() operands",
        math.log2(ANGLE / rounding),
    )


def _saturated(node: fx.Node, facts: Facts) -> Mark | None:
    """1 - p of a half p that is rounded to 1, and an upper bound that is 1 in half, in front of a logarithm."""
    called, half = name(node), facts.half(node)
    if half is None:
        return None
    top = 1 - 2.0 ** -(BITS[half] + 1)  # rounds to 1 above
    if called in ("clamp", "clip", "clamp_max"):
        high: Any = node.kwargs.get("max", node.args[-1] if len(node.args) > (called != "clamp_max") + 1 else None)
        if is_number(high) and top <= high < 1 and (one := _one_minus(node)):
            return _mark(
                "saturated",
                node,
                "certain",
                f"{high} is 1 in {words.dtype_name(half)}, so {words.operation(one)} may give 0",
                f"its largest number below 1 is {1 - 2.0 ** -BITS[half]:.6g}",
                "compute it in float32: .float() on its operand; or use a loss that takes logits",
                math.log2((1 - high) / 2.0 ** -(BITS[half] + 1)),
            )
        return None
    source = _complement(node)
    if source is None or facts.half(source) is None or _logarithm(node) is None:
        return None
    least = 2.0 ** -(BITS[half] + 1)
    stats = facts.stats(node)
    smallest, verdict = (stats.tiny, "calibrated") if stats else (_estimated(source, facts), "likely")
    if not smallest or smallest >= least:
        return None
    return _mark(
        "saturated",
        node,
        verdict,
        f"1 - p is 0 in {words.dtype_name(half)} for p above {top:.6g}, and its logarithm -inf",
        f"1 - p comes down to {words.number(smallest)}",
        "use logsigmoid(-logits) for log(1 - sigmoid(logits)), a loss that takes logits, or .float() on p's logits",
        math.log2(smallest / least),
    )


def _complement(node: fx.Node) -> fx.Node | None:
    """p of 1 - p."""
    called, args = name(node), node.args
    if called == "rsub" and isinstance(args[0], fx.Node) and len(args) > 1 and args[1] == 1:
        return args[0]
    return None


def _one_minus(node: fx.Node) -> fx.Node | None:
    return next((user for user in node.users if _complement(user) is node), None)


def _logarithm(node: fx.Node) -> fx.Node | None:
    users = [*node.users, *(later for user in node.users if origin(user) is origin(node) for later in user.users)]
    return next((user for user in users if name(user) in ("log", "log2", "log10")), None)


def _estimated(source: fx.Node, facts: Facts) -> float | None:
    """The least 1 - sigmoid(x)."""
    first = origin(source)
    if name(first) != "sigmoid" or not isinstance(first.args[0], fx.Node):
        return None
    size = facts.largest(first.args[0])
    return math.exp(-size) if size is not None and size < 700 else None


def _cancelled(node: fx.Node, facts: Facts) -> Mark | None:
    """A difference much smaller than its rounded operands: E[x²] - E[x]²."""
    if name(node) not in ("sub", "add", "rsub") or len(node.args) < 2:
        return None
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    halves = [half for one in (left, right) if (half := _rounded(one, facts))]
    if not halves:
        return None
    sizes = [_typical(one, facts) for one in (node, left, right)]
    if any(size is None for size in sizes):
        return None
    result, first, second = (float(size or 0.0) for size in sizes)
    rounded = max(size for one, size in ((left, first), (right, second)) if _rounded(one, facts))
    if not result or not rounded:
        return None
    lost, kept = math.log2(rounded / result), min(BITS[half] for half in halves)
    if kept - lost > KEPT or min(first, second) < rounded / 8:
        return None
    variance = _square(left) and _square(right)
    what = "E[x²] - E[x]²" if variance else words.operation(node)
    return _mark(
        "cancelled",
        node,
        "calibrated" if facts.stats(node) else "likely",
        f"{what} cancels: of {kept} bits {max(kept - lost, 0):.0f} are left",
        f"the difference is about {words.number(result)}, its operands {words.number(first)} and "
        f"{words.number(second)}, rounded to {words.dtype_name(halves[0])}",
        "use x.float().var(), or subtract the mean before squaring, in float32"
        if variance
        else "compute it in float32: .float() on what the operands are computed from",
        kept - lost - KEPT,
    )


def _rounded(node: fx.Node, facts: Facts) -> torch.dtype | None:
    """The half dtype in which a node's values, or those that it is a square of, were rounded; no constant's."""
    half = facts.half(node)
    if constant(node, facts.ranges) is not None or origin(node).op == "placeholder":
        return None
    if half:
        return half
    first = origin(node)
    if isinstance(first, fx.Node) and name(first) in ("pow", "mul", "square") and isinstance(first.args[0], fx.Node):
        return facts.half(origin(first.args[0])) if origin(first.args[0]).op == "call_function" else None
    return facts.half(first) if isinstance(first, fx.Node) and first.op == "call_function" else None


def _square(node: Any) -> bool:
    """Whether a node is a mean, or a square of one."""
    for _ in range(4):
        node = origin(node)
        if name(node) in ("mean", "avg_pool2d", "conv2d"):
            return True
        if name(node) not in ("pow", "mul", "square", "sum", "div"):
            return False
        node = node.args[0]
    return False


def _typical(node: fx.Node, facts: Facts) -> float | None:
    """The root of the mean square."""
    if stats := facts.stats(node):
        return math.hypot(stats.mean, stats.std)
    found = facts.ranges.get(node)
    if found is None or found.mean is None or found.var is None:
        return None
    return math.sqrt(found.mean**2 + found.var)


def _accumulated(node: fx.Node, facts: Facts, chains: dict[fx.Node, int]) -> Iterator[Mark]:
    """A sum that a loop keeps in half, term by term."""
    if name(node) != "add" or facts.half(node) is None:
        return
    before = max((chains[one] for one in node.all_input_nodes if one in chains and _loop(one, node)), default=0)
    chains[node] = before + 1
    if chains[node] < TERMS or any(name(user) == "add" and _loop(node, user) for user in node.users):
        return
    half = facts.half(node) or torch.float16
    error = chains[node] * 2.0 ** -(BITS[half] + 1)
    yield Mark(
        CODE,
        "likely",
        node,
        place_of(placed(node)),
        math.log2(TERMS / chains[node]),
        f"{chains[node]} terms are added one by one in {words.dtype_name(half)}",
        f"each addition rounds to {BITS[half]} bits: the error may come to {100 * error:.2g} %",
        "keep the sum in float32: .float() on what it starts with",
        Severity.WARNING,
        about="terms",
    )


def _loop(one: fx.Node, node: fx.Node) -> bool:
    """Whether two nodes are the same expression of one module's call."""
    place = place_of(node)
    return place is not None and place_of(one) == place and one.meta.get("module") == node.meta.get("module")

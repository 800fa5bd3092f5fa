"""Functions of two tensors, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amplint.graph.ranges.domain import LARGE, Box, cell, flushed, make
from amplint.graph.ranges.domain import together as stacked
from amplint.graph.ranges.transfer.table import Call, transfer
from amplint.graph.ranges.transfer.unary import DEPTH, SIZES, _reciprocal, composed, spread_below, straight, unary

_ANGLES = torch.arange(5, dtype=torch.float64) * (math.pi / 8)
_COS, _SIN = torch.cos(_ANGLES), torch.sin(_ANGLES)


def aligned(box: Box, rank: int) -> Tensor:
    """The six cells, with as many dimensions as a result of `rank`."""
    cells = box.cells
    return cells.reshape(6, *[1] * (rank - cells.ndim + 1), *cells.shape[1:])


def constant(box: Box) -> float | None:
    """The number that a box is."""
    return float(box.exact) if box.exact is not None and box.exact.numel() == 1 and not box.exact.is_complex() else None


def same_source(call: Call) -> tuple[Box, Any] | None:
    """Where both arguments are functions of one tensor: its box, and the function pair."""
    a, b = call.box("self"), call.box("other")
    if a.shape != b.shape or a.exact is not None or b.exact is not None:
        return None
    node, other = call.source("self"), call.source("other")
    left = a.of or (node, None, 0)
    right = b.of or (other, None, 0)
    for one, two in ((left, right), ((node, None, 0), right), (left, (other, None, 0))):
        if one[0] is two[0] and one[0] in call.boxes and one[2] + two[2] < DEPTH:
            start = call.boxes[one[0]]
            if isinstance(start, Box) and start.shape == a.shape:
                return start, (one[0], one[1] or _identity, two[1] or _identity, one[2] + two[2] + 1)
    return None


def _identity(x: Tensor) -> Tensor:
    return x


def together(
    call: Call, operation: Callable[[Tensor, Tensor], Tensor], low: Any, high: Any, **known: Any
) -> Box | None:
    """The result where both arguments are functions of one tensor."""
    found = same_source(call)
    if found is None:
        return None
    start, (node, f, g, depth) = found
    return composed(call, start, (node, lambda x: operation(f(x), g(x)), depth), low, high, **known)


@transfer("add sub rsub subtract")
def _add(call: Call) -> Box:
    a, b = call.box("self"), call.box("other")
    sign = float(call.get("alpha", 1))
    if call.name == "rsub":
        a, b = b, a
    return combine(call, a, b, -sign if call.name in ("sub", "rsub", "subtract") else sign)


def combine(call: Call, a: Box, b: Box, factor: float) -> Box:
    """a + factor·b."""
    rank = len(call.shape)
    x, y = aligned(a, rank), aligned(b, rank)
    if factor < 0:
        y = y[[1, 0, 2, 3, 5, 4]]
    low, high = x[0] + factor * y[0], x[1] + factor * y[1]
    known: dict[str, Any] = {"masked": max(a.masked, b.masked), "infinite": a.infinite or b.infinite}
    if max(a.flush or 0.0, b.flush or 0.0) > 0.02:  # a sum is tiny where both are
        known["flush"] = math.prod(1.0 if not bool(one.square.any()) else flushed(one) for one in (a, b))
    number = constant(b)
    if number is not None and a.shape == call.shape:
        known["form"] = _shifted(a, number * factor)
        if call.name != "rsub":
            return straight(call, a, 1.0, number * factor, low, high, **known)
    number = constant(a)
    if number is not None and call.name == "rsub" and b.shape == call.shape:
        return straight(call, b, factor, number, low, high, **known)
    if call.name == "add" or call.name == "sub":
        rest = {name: value for name, value in known.items() if name != "flush"}
        both = together(call, lambda u, v: u + factor * v, low, high, **rest)
        if both is not None:
            return both
    beside = _beside(call, b, "self") if factor == -1 and call.name == "sub" else None
    if beside is not None and beside[0] == "largest":
        high = torch.zeros_like(high)  # x - max(x)
    return _sum(call, x, y, factor, low, high, known)


def _sum(call: Call, x: Tensor, y: Tensor, factor: float, low: Tensor, high: Tensor, known: dict[str, Any]) -> Box:
    mean, var = x[2] + factor * y[2], x[3] + factor**2 * y[3]
    up = torch.hypot(x[5] - x[2], factor * (y[5] - y[2]))
    down = torch.hypot(x[2] - x[4], factor * (y[2] - y[4]))
    zero = bool((low <= 0).all() and (high >= 0).all()) and not call.dtype.is_floating_point
    return make(call.shape, low, high, mean, var, mean - down, mean + up, zero=zero, **known)


def _shifted(box: Box, number: float) -> tuple[Any, ...] | None:
    """What stays known of a norm when a small positive number is added."""
    return box.form if box.form and box.form[0] in SIZES and number >= 0 else None


def _beside(call: Call, box: Box, name: str) -> tuple[Any, ...] | None:
    """What is known of a box that was reduced from the argument `name`, if it lies beside it as the reduction did."""
    if box.form is None or len(box.form) < 4 or box.form[1] is not call.source(name):
        return None
    shape = call.box(name).shape
    padded = (1,) * (len(shape) - len(box.shape)) + box.shape
    return box.form if padded == box.form[3] and len(shape) == len(box.form[3]) else None


@transfer("mul multiply")
def _mul(call: Call) -> Box:
    a, b = call.box("self"), call.box("other")
    rank = len(call.shape)
    x, y = aligned(a, rank), aligned(b, rank)
    low, high = times(x[0], x[1], y[0], y[1])
    known: dict[str, Any] = {"zero": a.zero or b.zero, "infinite": a.infinite or b.infinite}
    for one, two in ((a, b), (b, a)):
        number = constant(two)
        if number is not None and one.shape == call.shape:
            return _scaled(call, one, number, low, high, known)
    if call.source("self") is call.source("other"):
        low = low.clamp_min(0)
        known["form"] = ("square", call.source("self"))
    bound = _bounded(call, a, b)
    if bound is not None:
        low, high = low.clamp_min(-bound), high.clamp_max(bound)
    both = together(call, torch.mul, low, high, **known)
    if both is not None:
        return both
    return product(call, x, y, low, high, known, (a, b))


def _scaled(call: Call, one: Box, number: float, low: Any, high: Any, known: dict[str, Any]) -> Box:
    known["masked"] = one.masked
    if number > 0 and one.form and one.form[0] == "probabilities":
        known["form"] = (*one.form[:-1], one.form[-1] * number)
    name = "self" if call.boxes.get(call["self"]) is one else "other"
    call = replace(call, arguments={**call.arguments, "self": call[name]})
    result = straight(call, one, number, 0.0, low, high, **known)
    if one.log is not None and number > 0:
        shifted = one.log.clone()
        shifted[0] += math.log(number)
        return replace(result, log=shifted, flush=None)
    return result


def _bounded(call: Call, a: Box, b: Box) -> float | None:
    """|x · 1/rms(x)| ≤ √n, |x · 1/‖x‖| ≤ 1: the bound that intervals cannot see."""
    for other, name in ((b, "self"), (a, "other")):
        form = _beside(call, other, name)
        if form is not None and form[0] in ("inverse rms", "inverse norm"):
            return math.sqrt(form[2] if form[0] == "inverse rms" else 1) * 1.001
    return None


def times(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """[a, b] · [c, d]."""
    a, b, c, d = (one.clamp(-LARGE, LARGE) for one in (a, b, c, d))
    products = stacked([a * c, a * d, b * c, b * d])
    return products.amin(0), products.amax(0)


def product(
    call: Call, x: Tensor, y: Tensor, low: Any, high: Any, known: dict[str, Any], boxes: tuple[Box, Box]
) -> Box:
    """Independent factors. The largest product of two normal factors over n elements lies where their deviations
    share the reach of n: cos and sin of an angle."""
    mean = x[2] * y[2]
    var = x[3] * y[3] + x[3] * y[2] ** 2 + y[3] * x[2] ** 2
    shape = (-1,) + (1,) * x[2].ndim
    cos, sin = _COS.reshape(shape), _SIN.reshape(shape)
    ends = [(x[2] + cos * (p - x[2])) * (y[2] + sin * (q - y[2])) for p in (x[4], x[5]) for q in (y[4], y[5])]
    every = stacked(ends)
    every = every.flatten(0, 1)
    log = _log_product(x, y, boxes)
    if log is None:
        shares = [spread_below(call, a, math.sqrt(float(b.square.mean()))) for a, b in (boxes, boxes[::-1])]
        known = {"flush": max((one for one in shares if one is not None), default=None), **known}
    return make(call.shape, low, high, mean, var, every.amin(0), every.amax(0), log=log, **known)


def _log_product(x: Tensor, y: Tensor, boxes: tuple[Box, Box]) -> Tensor | None:
    """Log-normal times something whose size hardly varies stays log-normal."""
    for one, other, cells in ((boxes[0], boxes[1], y), (boxes[1], boxes[0], x)):
        if one.log is not None and one.log.ndim == cells.ndim and other.log is None:
            size = (cells[2] ** 2 + cells[3]).sqrt()
            if bool((size == 0).any()):
                return None
            size = size.log()
            return stacked([one.log[0] + size, one.log[1]])
    return None


@transfer("div true_divide divide")
def _div(call: Call) -> Box:
    a, b = call.box("self"), call.box("other")
    rank = len(call.shape)
    rounding = call.get("rounding_mode")
    number = constant(b)
    x, y = aligned(a, rank), aligned(b, rank)
    inverse = _reciprocal(replace(b, shape=call.shape, cells=y))
    low, high = times(x[0], x[1], *inverse)
    if rounding is not None:
        low, high = torch.floor(low), torch.ceil(high)
    hits = b.zero and bool(((b.low <= 0) & (b.high >= 0)).any())
    known: dict[str, Any] = {"zero": a.zero, "infinite": a.infinite or hits}
    if number is not None and number != 0 and a.shape == call.shape:
        if rounding is None:
            return _scaled(call, a, 1 / number, low, high, known)
        cut = torch.floor if rounding == "floor" else torch.trunc
        return unary(call, a, lambda v: cut(v / number), low, high, **known)
    form = _beside(call, b, "self")
    if form is not None and form[0] in ("norm", "sum", "rms"):  # x / ‖x‖, and x / Σx of x ≥ 0
        bound = math.sqrt(form[2] if form[0] == "rms" else 1) * 1.001
        low, high = low.clamp_min(-bound), high.clamp_max(bound)
        if form[0] == "sum":
            known["form"] = ("probabilities", form[2], 1.0)
    both = together(call, lambda u, v: u / torch.where(v.abs() < 1e-30, 1e-30, v), low, high, **known)
    if both is not None:
        return both
    return product(call, x, inverted(b, y), low, high, known, (a, b))


def inverted(box: Box, cells: Tensor) -> Tensor:
    """The six cells of 1/x, its estimate by the first terms about the mean."""
    mean, var = cells[2], cells[3]
    low, high = _reciprocal(replace(box, cells=cells))
    centre = torch.where(mean.abs() > 1e-30, mean, cells[5].abs().clamp_min(1e-30))
    ratio = (var / centre**2).clamp_max(1.0)
    about = (1 / centre) * (1 + ratio)
    positive = (cells[4] > 0) | (cells[5] < 0)
    floor = centre * 1e-3
    ends = torch.stack([1 / torch.where(positive, end, floor) for end in (cells[4], cells[5])])
    return torch.stack([low, high, about, ratio / centre**2, ends.amin(0), ends.amax(0)])


@transfer("maximum minimum fmax fmin")
def _larger(call: Call) -> Box:
    rank = len(call.shape)
    x, y = aligned(call.box("self"), rank), aligned(call.box("other"), rank)
    pick = torch.minimum if call.name in ("minimum", "fmin") else torch.maximum
    parts = [pick(x[index], y[index]) for index in range(6)]
    parts[3] = torch.maximum(x[3], y[3])
    parts[2] = pick(x[2], y[2])
    zero = call.box("self").zero or call.box("other").zero
    return make(call.shape, *parts, zero=zero)


@transfer("addcmul addcdiv")
def _addc(call: Call) -> Box:
    rank = len(call.shape)
    a, b = (aligned(call.box(name), rank) for name in ("tensor1", "tensor2"))
    if call.name == "addcdiv":
        b = inverted(call.box("tensor2"), b)
    low, high = times(a[0], a[1], b[0], b[1])
    known: dict[str, Any] = {}
    inner = product(call, a, b, low, high, known, (call.box("tensor1"), call.box("tensor2")))
    plain = replace(call, name="addc")
    return combine(plain, call.box("self"), inner, float(call.get("value", 1)))


@transfer("lerp")
def _lerp(call: Call) -> Box:
    rank = len(call.shape)
    a, b = aligned(call.box("self"), rank), aligned(call.box("end"), rank)
    weight = call.box("weight")
    w = aligned(weight, rank)
    inside = bool((w[0] >= 0).all() and (w[1] <= 1).all())
    low = torch.minimum(a[0], b[0]) if inside else torch.full_like(a[0], -math.inf)
    high = torch.maximum(a[1], b[1]) if inside else torch.full_like(a[1], math.inf)
    mean = a[2] + w[2] * (b[2] - a[2])
    var = (1 - w[2]) ** 2 * a[3] + w[2] ** 2 * b[3]
    return make(call.shape, low, high, mean, var)


@transfer("atan2")
def _atan2(call: Call) -> Box:
    return make(call.shape, -math.pi, math.pi, 0.0, math.pi**2 / 3, -math.pi, math.pi)


@transfer("remainder fmod floor_divide bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__")
def _integer(call: Call) -> Box:
    a, b = call.box("self"), call.box("other")
    if call.dtype == torch.bool:
        return make(call.shape, 0, 1, 0.5, 0.25, 0, 1, zero=True)
    number = constant(b)
    rank = len(call.shape)
    if call.name == "floor_divide" and number:
        x = aligned(a, rank)
        ends = torch.floor(x[[0, 1, 2, 4, 5]] / number)
        ordered = ends if number > 0 else ends[[1, 0, 2, 4, 3]]
        return make(call.shape, ordered[0], ordered[1], ordered[2], x[3] / number**2, ordered[3], ordered[4], zero=True)
    if call.name in ("remainder", "fmod") and number and number > 0:
        least = -number if call.name == "fmod" else 0.0
        return make(call.shape, least, number, number / 2, number**2 / 12, 0.0, number, zero=True)
    return make(call.shape, -math.inf, math.inf, zero=True)


@transfer(
    "eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf isfinite isneginf isposinf "
    "bitwise_not any all isin signbit"
)
def _question(call: Call) -> Box:
    if call.dtype != torch.bool:  # bitwise_not of integers
        return make(call.shape, -math.inf, math.inf, zero=True)
    return make(call.shape, 0, 1, _likely(call), 0.0, 0, 1, zero=True)


def _likely(call: Call) -> Tensor:
    """The share of True of a comparison."""
    rank = len(call.shape)
    half = cell(0.5, rank)
    if call.name in ("isnan", "isinf", "isneginf", "isposinf"):
        return cell(0.0, rank)
    if call.name == "isfinite":
        return cell(1.0, rank)
    if call.name in ("logical_not", "bitwise_not"):
        return 1 - aligned(call.box("self"), rank)[2]
    if call.name in ("logical_and", "logical_or") and "other" in call:
        a, b = aligned(call.box("self"), rank)[2], aligned(call.box("other"), rank)[2]
        return a * b if call.name == "logical_and" else a + b - a * b
    if call.name in ("lt", "le", "gt", "ge") and "other" in call:
        a, b = aligned(call.box("self"), rank), aligned(call.box("other"), rank)
        gap, deviation = (a[2] - b[2]), (a[3] + b[3]).sqrt().clamp_min(1e-12)
        below = 0.5 * torch.erfc(gap / (deviation * math.sqrt(2)))
        return (below if call.name in ("lt", "le") else 1 - below).nan_to_num(0.5)
    if call.name in ("eq", "ne") and "other" in call and constant(call.box("other")) is not None:
        a, value = aligned(call.box("self"), rank), constant(call.box("other"))
        sure = (a[2] == value) & (a[3] == 0)
        return torch.where(sure, 1.0, 0.0) if call.name == "eq" else torch.where(sure, 0.0, 1.0)
    return half

"""Functions of one tensor, element by element. The estimate is a quadrature on the normal distribution; a chain of
functions of the same tensor (x·x·x, x·sigmoid(x)) is one function of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amplint.graph.ranges.domain import LARGE, TINY, Box, make, together
from amplint.graph.ranges.transfer.table import Call, transfer

Function = Callable[[Tensor], Tensor]
_AT = torch.linspace(-5, 5, 41, dtype=torch.float64)
_WEIGHT = torch.exp(-(_AT**2) / 2) / torch.exp(-(_AT**2) / 2).sum()
WIDE = 30.0
SIZES = ("norm", "rms", "squares", "mean squares")
INVERSE_ROOTS = {"mean squares": "inverse rms", "squares": "inverse norm"}
DEPTH = 16  # operations in one chain


def unary(call: Call, box: Box, function: Function, low: Any, high: Any, **known: Any) -> Box:
    """A function's result: the interval is given, the estimate is found. The argument's `of` is carried on."""
    node, inner, depth = box.of or (call.source("self"), None, 0)
    start = call.boxes.get(node) if inner is not None else box
    if not isinstance(start, Box) or depth >= DEPTH:
        node, inner, depth, start = call.source("self"), None, 0, box
    whole = function if inner is None else _chain(function, inner)
    return composed(call, start, (node, whole, depth + 1), low, high, **known)


def _chain(outer: Function, inner: Function) -> Function:
    return lambda x: outer(inner(x))


def composed(call: Call, start: Box, of: tuple[Any, Function, int], low: Any, high: Any, **known: Any) -> Box:
    """The box of a function of `start`, which is the box of the node of[0]."""
    mean, var, bottom, top, flush, zero = quadrature(start, of[1])
    known = {"zero": zero, "masked": start.masked, "flush": flush, **known}
    return make(call.shape, low, high, mean, var, bottom, top, of=of, **known)


def straight(call: Call, box: Box, factor: float, shift: float, low: Any, high: Any, **known: Any) -> Box:
    """factor·x + shift: unary, but what is normal stays so, without a quadrature."""

    def function(x: Tensor) -> Tensor:
        return x * factor + shift

    if box.of is not None:
        return unary(call, box, function, low, high, **known)
    ends = (function(box.bottom), function(box.top))
    bottom, top = ends if factor >= 0 else ends[::-1]
    known = {"masked": box.masked, "of": (call.source("self"), function, 1), **known}
    return make(call.shape, low, high, function(box.mean), box.var * factor**2, bottom, top, **known)


def spread_below(call: Call, box: Box, scale: float) -> float | None:
    """The share of the non-zero x · scale that float16 flushes, where x is a function of a normal number."""
    if box.of is None and box.flush is not None:  # moved since: a tail of tiny values stays one, whatever the scale
        return box.flush if box.flush > 0.02 and float(box.square.mean()) > 2.0**-30 else None
    start = call.boxes.get(box.of[0]) if box.of is not None else None
    if not isinstance(start, Box) or box.of is None or box.flush is None or not 0 < scale < math.inf:
        return None
    function = box.of[1]
    return quadrature(start, lambda x: function(x) * scale)[4]


def quadrature(box: Box, function: Function) -> tuple[Tensor, Tensor, Tensor, Tensor, float | None, bool]:
    """Mean, variance, extremes, flush share and whether zeros come of a function of normal x with the box's moments."""
    if box.cells.shape[1:].numel() > 1 and box.cells[0].numel() > 16384:
        raise AssertionError("cells are limited")
    at = _AT.reshape(-1, *[1] * (box.cells.ndim - 1))
    weight = _WEIGHT.reshape(at.shape)
    constant = not bool((box.var > 0).any())
    if constant:
        at, weight = at[20:21], torch.ones_like(at[20:21])
    x = box.mean + at * box.var.sqrt()
    x = torch.cat([torch.minimum(torch.maximum(x, box.bottom), box.top), box.cells[4:]])
    y = function(x)
    y = torch.where(torch.isnan(x), math.nan, torch.nan_to_num(y, 0.0, LARGE, -LARGE))
    inside, bottom, top = y[:-2], y.amin(0), y.amax(0)
    mean = (inside * weight).sum(0)
    var = ((inside - mean) ** 2 * weight).sum(0)
    if constant and box.exact is None and not bool((box.top > box.bottom).any()):
        return mean, var, bottom, top, None, bool((inside == 0).any())
    if not constant and float(box.var.max()) > WIDE**2:  # where activations turn is between two points of the grid
        inside, weight = _finely(box, function)
    size = inside.float().abs()
    held, tiny = size > 0, (size > 0) & (size <= TINY)
    share, flushed = (float((one * weight).reshape(len(size), -1).mean(1).sum()) for one in (held, tiny))
    zero = share < 0.999
    return mean, var, bottom, top, flushed / share if share > 0 else 0.0, zero


def _finely(box: Box, function: Function) -> tuple[Tensor, Tensor]:
    """The function's values on a fine grid, for at most 64 of the cells."""
    mean, deviation = box.mean.flatten(), box.var.sqrt().flatten()
    step = max(len(mean) // 64, 1)
    at = torch.linspace(-4, 4, 1601, dtype=torch.float64)[:, None]
    return function(mean[::step] + at * deviation[::step]), torch.exp(-(at**2) / 2) / torch.exp(-(at**2) / 2).sum()


def interval(box: Box, function: Function, points: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """The sound range of a function that is monotone between these points."""
    low, high = box.low.clamp(-LARGE, LARGE), box.high.clamp(-LARGE, LARGE)
    ends = [function(low), function(high)]
    limits = [
        torch.where(end.isinf(), function(end), value) for end, value in zip((box.low, box.high), ends, strict=True)
    ]
    ends = [torch.where(limit.isnan(), value, limit) for limit, value in zip(limits, ends, strict=True)]  # inf ** 0.1
    ends += [function(torch.minimum(torch.maximum(torch.full_like(low, point), low), high)) for point in points]
    both = torch.stack(ends)
    least, most = both.amin(0), both.amax(0)
    return torch.where(least != least, -math.inf, least), torch.where(most != most, math.inf, most)


def _gelu(call: Call) -> Function:
    approximate = call.get("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def _number(call: Call, name: str, default: float) -> float:
    return float(call.get(name, default))


# name → (the function for a call, where its direction may change)
_PLAIN: dict[str, tuple[Callable[[Call], Function], tuple[float, ...]]] = {
    "relu": (lambda call: F.relu, ()),
    "relu6": (lambda call: F.relu6, ()),
    "hardtanh": (
        lambda call: lambda x: x.clamp(_number(call, "min_val", -1), _number(call, "max_val", 1)),
        (),
    ),
    "gelu": (_gelu, (-0.7517916, -0.75246142)),
    "silu": (lambda call: F.silu, (-1.2784645,)),
    "mish": (lambda call: F.mish, (-1.1924312,)),
    "hardswish": (lambda call: F.hardswish, (-1.5, -3.0)),
    "hardsigmoid": (lambda call: F.hardsigmoid, ()),
    "elu": (
        lambda call: (
            lambda x: torch.where(
                x > 0,
                x * _number(call, "scale", 1),
                torch.expm1(x * _number(call, "input_scale", 1))
                * _number(call, "alpha", 1)
                * _number(call, "scale", 1),
            )
        ),
        (0.0,),
    ),
    "selu": (lambda call: F.selu, ()),
    "celu": (lambda call: lambda x: F.celu(x, _number(call, "alpha", 1)), (0.0,)),
    "leaky_relu": (lambda call: lambda x: F.leaky_relu(x, _number(call, "negative_slope", 0.01)), (0.0,)),
    "sigmoid": (lambda call: torch.sigmoid, ()),
    "log_sigmoid": (lambda call: F.logsigmoid, ()),
    "tanh": (lambda call: torch.tanh, ()),
    "softplus": (
        lambda call: lambda x: F.softplus(x, _number(call, "beta", 1), _number(call, "threshold", 20)),
        (),
    ),
    "erf": (lambda call: torch.erf, ()),
    "erfc": (lambda call: torch.erfc, ()),
    "expm1": (lambda call: torch.expm1, ()),
    "exp2": (lambda call: torch.exp2, ()),
    "abs": (lambda call: torch.abs, (0.0,)),
    "neg": (lambda call: torch.neg, ()),
    "square": (lambda call: torch.square, (0.0,)),
    "sign": (lambda call: torch.sign, ()),
    "sgn": (lambda call: torch.sign, ()),
    "floor": (lambda call: torch.floor, ()),
    "ceil": (lambda call: torch.ceil, ()),
    "round": (lambda call: torch.round, ()),
    "trunc": (lambda call: torch.trunc, ()),
    "atan": (lambda call: torch.atan, ()),
    "asinh": (lambda call: torch.asinh, ()),
    "sinh": (lambda call: torch.sinh, ()),
    "cosh": (lambda call: torch.cosh, (0.0,)),
    "hardshrink": (lambda call: lambda x: F.hardshrink(x, _number(call, "lambd", 0.5)), (-0.5, 0.0, 0.5)),
    "softshrink": (lambda call: lambda x: F.softshrink(x, _number(call, "lambd", 0.5)), ()),
}


def _register(name: str, build: Callable[[Call], Function], points: tuple[float, ...]) -> None:
    @transfer(name)
    def run(call: Call) -> Box:
        box, function = call.box("self"), build(call)
        low, high = interval(box, function, points)
        return unary(call, box, function, low, high)


for _name, (_build, _points) in _PLAIN.items():
    _register(_name, _build, _points)


@transfer("sin cos")
def _wave(call: Call) -> Box:
    box = call.box("self")
    return unary(call, box, torch.sin if call.name == "sin" else torch.cos, -1.0, 1.0)


@transfer("frac")
def _frac(call: Call) -> Box:
    return unary(call, call.box("self"), torch.frac, -1.0, 1.0)


@transfer("exp")
def _exp(call: Call) -> Box:
    box = call.box("self")
    low, high = interval(box, torch.exp)
    result = unary(call, box, torch.exp, low, high)
    mean = torch.exp(box.mean + box.var / 2).clamp_max(LARGE)
    var = (mean**2 * torch.expm1(box.var.clamp_max(300.0))).clamp_max(LARGE)
    reaches = bool((box.top >= box.mean + 3 * box.var.sqrt()).all())
    if box.of is None and box.log is None and reaches:  # of a normal number: the closed form, the tail is not cut
        cells = result.cells.clone()
        cells[2], cells[3] = torch.minimum(torch.maximum(mean, cells[0]), cells[1]), var
        result = replace(result, cells=cells)
    return replace(result, log=torch.stack([box.mean, box.var.sqrt()]), flush=None)


@transfer("log log2 log10 log1p")
def _log(call: Call) -> Box:
    box = call.box("self")
    function: Function = getattr(torch, call.name)
    edge = -1.0 if call.name == "log1p" else 0.0
    low = torch.where(box.low <= edge, -math.inf, function(box.low.clamp_min(edge).clamp_max(LARGE)))
    high = function(box.high.clamp_min(edge))
    hits = box.zero and edge == 0 and bool((box.low <= 0).any())
    inside = replace(box, cells=_above(box.cells, edge))
    known = {"infinite": hits or box.infinite}
    if box.log is not None and call.name == "log":
        mean, deviation = box.log[0], box.log[1]
        return make(call.shape, low, high, mean, deviation**2, **known)
    if box.of is None or hits:
        mean, var, bottom, top, _, zero = quadrature(inside, function)
        return make(call.shape, low, high, mean, var, bottom, top, zero=zero, **known)
    return unary(call, box, lambda x: function(x.clamp_min(edge + 1e-38)), low, high, **known)


def _above(cells: Tensor, edge: float) -> Tensor:
    """The estimate of values that must lie above an edge: the least value is a thousandth of the usual size."""
    cells = cells.clone()
    least = edge + (cells[2].abs() + cells[3].sqrt() - edge).clamp_min(1e-30) * 1e-3
    cells[4] = torch.maximum(cells[4], torch.minimum(least, cells[5]))
    cells[4] = cells[4].clamp_min(edge + 1e-38)
    cells[5] = torch.maximum(cells[5], cells[4])
    cells[2] = torch.maximum(cells[2], cells[4])
    return cells


@transfer("sqrt")
def _sqrt(call: Call) -> Box:
    box = call.box("self")
    low, high = interval(box, lambda x: x.clamp_min(0).sqrt())
    form = _formed(box, {"squares": "norm", "mean squares": "rms"})
    return unary(call, box, lambda x: x.clamp_min(0).sqrt(), low, high, form=form)


def _formed(box: Box, names: dict[str, str]) -> tuple[Any, ...] | None:
    """What is known of a root or an inverse of something of which something is known."""
    return (names[box.form[0]], *box.form[1:]) if box.form and box.form[0] in names else None


@transfer("rsqrt reciprocal")
def _inverse(call: Call) -> Box:
    box = call.box("self")
    root = call.name == "rsqrt"

    def function(x: Tensor) -> Tensor:
        return 1 / (x.clamp_min(0).sqrt() if root else x)

    if root:  # of -0, which what may be negative may come to, it is -inf
        low = torch.where(box.low < 0, -math.inf, function(box.high.clamp(0, LARGE)))
        high = torch.where(box.low <= 0, math.inf, function(box.low))
    else:
        low, high = _reciprocal(box)
    hits = box.zero and bool((box.low <= 0).any()) and bool((box.high >= 0).any())
    form = _formed(box, INVERSE_ROOTS if root else {"norm": "inverse norm", "rms": "inverse rms"})
    known = {"infinite": hits, "form": form, "zero": False}
    positive = root or bool((box.low >= 0).all())
    if positive:
        inside = replace(box, cells=_above(box.cells, 0.0))
        mean, var, bottom, top, flush, _ = quadrature(inside, function)
        return make(call.shape, low, high, mean, var, bottom, top, flush=flush, **known)
    return unary(call, box, lambda x: 1 / torch.where(x.abs() < 1e-30, 1e-30, x), low, high, **known)


def _reciprocal(box: Box) -> tuple[Tensor, Tensor]:
    """1/x. What is at most 0 may be +0, whose inverse is inf: log_softmax in FP32. What is at least 0 is not -0."""
    across = (box.low <= 0) & (box.high >= 0)
    a, b = 1 / box.low, 1 / box.high
    low = torch.where(across, torch.where((box.low == 0) & (box.high > 0), b, -math.inf), torch.minimum(a, b))
    high = torch.where(across, math.inf, torch.maximum(a, b))
    return low, high


@transfer("clamp clamp_min clamp_max clip")
def _clamp(call: Call) -> Box:
    box = call.box("self")
    ends = [call.get("min"), call.get("max")]
    if any(end is not None and not isinstance(end, int | float) for end in ends):
        return _clamp_tensor(call, box)
    least, most = (-math.inf if ends[0] is None else ends[0]), (math.inf if ends[1] is None else ends[1])

    def function(x: Tensor) -> Tensor:
        return x.clamp(least, most)

    low, high = box.low.clamp(least, most), box.high.clamp(least, most)
    form = box.form if box.form and box.form[0] in SIZES and ends[1] is None else None
    return unary(call, box, function, low, high, form=form, zero=(box.zero and least <= 0) or least == 0 or most == 0)


def _clamp_tensor(call: Call, box: Box) -> Box:
    low, high, bottom, top = box.low, box.high, box.bottom, box.top
    mean = box.mean
    if "min" in call:
        end = call.box("min")
        low, high = torch.maximum(low, end.low), torch.maximum(high, end.high)
        mean, bottom, top = (
            torch.maximum(mean, end.mean),
            torch.maximum(bottom, end.bottom),
            torch.maximum(top, end.top),
        )
    if "max" in call:
        end = call.box("max")
        low, high = torch.minimum(low, end.low), torch.minimum(high, end.high)
        mean, bottom, top = (
            torch.minimum(mean, end.mean),
            torch.minimum(bottom, end.bottom),
            torch.minimum(top, end.top),
        )
    return make(call.shape, low, high, mean, box.var, bottom, top, zero=box.zero)


@transfer("pow")
def _pow(call: Call) -> Box:
    box, power = call.box("self"), call["exponent"]
    if not isinstance(power, int | float):
        return _pow_tensor(call, box, call.box("exponent"))
    points = (0.0,) if power > 0 else ()
    form: tuple[Any, ...] | None = None
    if power == 2:
        form = ("square", call.source("self"))
    elif power in (0.5, -0.5):
        form = _formed(box, {"squares": "norm", "mean squares": "rms"} if power > 0 else INVERSE_ROOTS)
    whole = float(power).is_integer()

    def function(x: Tensor) -> Tensor:
        x = x if whole else x.clamp_min(0)
        x = x if power > 0 else torch.where(x.abs() < 1e-38, 1e-38, x)
        return x**power

    if power < 0:
        if not bool((box.low > 0).all() | (box.high < 0).all()):
            ends: Any = (-math.inf if whole and power % 2 and bool((box.low < 0).any()) else 0.0), math.inf
        else:
            ends = interval(box, lambda x: x**power)
        hits = box.zero and bool((box.low <= 0).any())
        inside = replace(box, cells=_above(box.cells, 0.0)) if bool((box.low >= 0).all()) else box
        mean, var, bottom, top, flush, _ = quadrature(inside, function)
        return make(call.shape, ends[0], ends[1], mean, var, bottom, top, flush=flush, infinite=hits, form=form)
    low, high = interval(box, function, points)
    return unary(call, box, function, low, high, form=form)


def _pow_tensor(call: Call, box: Box, power: Box) -> Box:
    """b^x for a positive base: exp(x log b)."""
    if bool((box.low <= 0).any()):
        return make(call.shape, -math.inf, math.inf)
    base = [box.low.log().clamp_max(LARGE), box.high.log().clamp_max(LARGE)]
    corners = [b * x.clamp(-LARGE, LARGE) for b in base for x in (power.low, power.high)]
    both = together(corners)
    guess = [b.clamp_min(1e-38).log() * x for b in (box.bottom, box.top) for x in (power.bottom, power.top)]
    guesses = together(guess)
    mean = box.mean.clamp_min(1e-38).log() * power.mean
    spread = power.var * box.mean.clamp_min(1e-38).log() ** 2
    centre = torch.exp(mean + spread / 2)
    low, high = torch.exp(both.amin(0)), torch.exp(both.amax(0))
    extremes = torch.exp(guesses.amin(0)), torch.exp(guesses.amax(0))
    return make(call.shape, low, high, centre, centre**2 * torch.expm1(spread.clamp_max(300.0)), *extremes)

"""What is known of a tensor: constants, a sound interval and an estimate, by cell.

A `Box` describes a tensor of some shape by cells: a tensor of the same rank whose sizes are 1 or the shape's own. A
(8, 64, 32, 32) feature map has cells (1, 64, 1, 1): one description a channel. Operations on cells are then ordinary
broadcasting, and a constant is a box with a cell for each element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

CELLS = 4096  # at most so many cells: a box costs no more than a few vectors of channels
MOST = torch.finfo(torch.float32).max  # beyond it FP32 itself is infinite
LARGE = 1e150  # stands for infinity inside an operation, so that 0 times it is 0
GUESS = 1e40  # no estimate goes beyond
TINY = 2.0**-25  # float16 rounds to zero at or below
MASK = -1e4  # an added constant at or below it masks, where others beside it are not
_ZERO = -95.0  # exp of less is zero in FP32, or subnormal, as the kernel has it

Of = tuple[Any, Callable[[Tensor], Tensor], int]


@dataclass(frozen=True, eq=False)
class Box:
    """A tensor's values. `cells`: float64, (6, *cell sizes): low, high (sound), mean, variance, and the least and the
    largest value to be expected in the whole tensor (estimates; nan: unknown)."""

    shape: tuple[int, ...]
    cells: Tensor
    exact: Tensor | None = None
    zero: bool = False  # exact zeros are to be expected
    infinite: bool = False  # holds ±inf
    masked: float = 0.0  # share of the elements that a mask of -1e4 and below (or -inf) hides; no part of the estimate
    flush: float | None = None  # share of the non-zero elements below TINY, where the normal distribution misleads
    log: Tensor | None = None  # (2, *cells): mean and deviation of the logarithm, for what is log-normal
    of: Of | None = None  # a function of a single tensor: (node, function, how many operations)
    form: tuple[Any, ...] | None = None  # what else is known, for one operation to come: ("sum", node), …
    why: tuple[str, float] | None = None
    unknown: str = ""

    @property
    def low(self) -> Tensor:
        return self.cells[0]

    @property
    def high(self) -> Tensor:
        return self.cells[1]

    @property
    def mean(self) -> Tensor:
        return self.cells[2]

    @property
    def var(self) -> Tensor:
        return self.cells[3]

    @property
    def bottom(self) -> Tensor:
        return self.cells[4]

    @property
    def top(self) -> Tensor:
        return self.cells[5]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def square(self) -> Tensor:
        """E[x²]."""
        return self.cells[3] + self.cells[2] ** 2


@dataclass(frozen=True)
class Range:
    """What the analysis says of a node. The interval holds for all inputs in their declared ranges, as if half could
    not overflow; the estimate is what an ordinary batch gives, without what a mask hides."""

    low: float
    high: float
    mean: float | None = None
    var: float | None = None
    amax: float | None = None  # the largest |x| to be expected
    tiny: float | None = None  # share of the non-zero elements that float16 would flush to zero
    exact: Tensor | None = None
    infinite: bool = False  # may hold ±inf, and something uses them
    masked: bool = False  # holds -inf, or a mask's constant, that all who follow discard
    why: tuple[str, float] | None = None  # ("reduction length", 4096), ("weight norm", 31.2), ("input range", 1e4)
    unknown: str = ""  # the operation that nothing is known of, here or before


@dataclass(frozen=True)
class Declared:
    """What the values of an input are, or those of a parameter without data."""

    low: float = -math.inf
    high: float = math.inf
    mean: float = 0.0
    std: float = 1.0


@cache
def normal_max(n: int) -> float:
    """The median of max |x| over n standard normal x; sqrt(2 ln n) is its limit."""
    return NormalDist().inv_cdf(1 - 0.3466 / max(n, 1)) if n > 1 else 0.6745


@cache
def one_sided(n: int) -> float:
    """The median of max x over n standard normal x."""
    return NormalDist().inv_cdf(0.5 ** (1 / n)) if n > 1 else 0.0


def make(
    shape: tuple[int, ...],
    low: Any,
    high: Any,
    mean: Any = math.nan,
    var: Any = math.nan,
    bottom: Any = None,
    top: Any = None,
    **known: Any,
) -> Box:
    """A box. Extremes that are not given are those of the normal distribution; estimates are kept in the interval."""
    rank = len(shape)
    mean, var = cell(mean, rank), cell(var, rank)
    if bottom is None or top is None:
        reach = normal_max(math.prod(shape)) * var.clamp_min(0).sqrt()
        bottom, top = mean - reach, mean + reach
    cells = together(cell(one, rank) for one in (low, high, mean, var, bottom, top))
    cells[0].nan_to_num_(-math.inf, MOST, -math.inf)
    cells[1].nan_to_num_(math.inf, math.inf, -MOST)
    cells[0] = torch.where(cells[0] < -MOST, -math.inf, cells[0])
    cells[1] = torch.where(cells[1] > MOST, math.inf, cells[1])
    most = (cells[1] - cells[2]).clamp_min(0) * (cells[2] - cells[0]).clamp_min(0)  # of values between low and high
    cells[3] = torch.minimum(cells[3], torch.where(most > 0, most, math.inf)).clamp_(0, GUESS**2)
    rest = torch.minimum(torch.maximum(cells[[2, 4, 5]], cells[0]), cells[1])
    cells[[2, 4, 5]] = rest.clamp_(-GUESS, GUESS)
    return limit(Box(shape, cells, **known))


def together(parts: Iterable[Tensor]) -> Tensor:
    """Cells of one rank, broadcast and stacked."""
    return torch.stack(torch.broadcast_tensors(*parts))  # type: ignore[no-untyped-call]


def cell(value: Any, rank: int) -> Tensor:
    """A number or cells of a lower rank as cells of `rank`."""
    if not isinstance(value, Tensor):
        return torch.full((1,) * rank, float(value), dtype=torch.float64)
    cells: Tensor = value.double()
    return cells if cells.ndim == rank else cells.reshape((1,) * (rank - cells.ndim) + tuple(cells.shape))


def number(value: float) -> Box:
    """A Python number."""
    value = float(value)
    exact = torch.tensor(value, dtype=torch.float64)
    cells = torch.tensor([value, value, value, 0.0, value, value], dtype=torch.float64)
    return Box((), cells, exact, zero=value == 0, infinite=math.isinf(value))


def of_tensor(value: Tensor) -> Box:
    """A constant. Its mask values are kept out of the estimate: a tensor with elements at or below -1e4 beside others
    that are above is a mask."""
    shape = tuple(value.shape)
    if value.numel() == 0:
        return make(shape, 0, 0, 0, 0, exact=value)
    if value.is_complex():
        return make(shape, -math.inf, math.inf, unknown="complex")
    data = value if value.is_floating_point() else value.double()
    least, most = (float(one) for one in torch.aminmax(data.detach()))
    hidden = 0.0
    if least <= MASK < most and most > -1 and value.is_floating_point():
        mask = data <= MASK
        hidden = float(mask.double().mean())
        shown = torch.where(mask, 0.0, data)
    else:
        shown = data
    known = {
        "exact": value,
        "zero": bool((value == 0).any()) if value.numel() <= 65536 else least == 0 or most == 0,
        "infinite": math.isinf(least) or math.isinf(most) or least != least,
        "masked": hidden,
    }
    if value.numel() <= CELLS:
        shown = shown.double()
        low, high = data, torch.where(mask, 0.0, data) if hidden else data  # a hidden cell's estimate is 0
        return make(shape, low, high, shown, 0.0, shown, shown, **known)
    dims = _spread(shape)
    if dims is None:
        mean, var = shown.mean(), shown.var(correction=0)
        return make(shape, least, most, mean, var, shown.min(), shown.max(), **known)
    low, high = data.amin(dims, keepdim=True), data.amax(dims, keepdim=True)
    bottom, top = (low, high) if not hidden else (shown.amin(dims, keepdim=True), shown.amax(dims, keepdim=True))
    var, mean = torch.var_mean(shown, dims, correction=0, keepdim=True)
    return make(shape, low, high, mean, var, bottom, top, **known)


def _spread(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions to reduce of a large constant: all but its last, if that is short enough."""
    rank = len(shape)
    return tuple(range(rank - 1)) if rank > 1 and 1 < shape[-1] <= CELLS else None


def limit(box: Box) -> Box:
    """At most CELLS cells: dimensions whose cells differ least are merged."""
    sizes = box.cells.shape[1:]
    if box.cells[0].numel() <= CELLS:
        return box
    kept: list[int] = []
    count = 1
    for dim in sorted(range(len(sizes)), key=lambda dim: _differ(box, dim), reverse=True):
        if count * sizes[dim] <= CELLS:
            kept.append(dim)
            count *= sizes[dim]
    return merge(box, [dim for dim in range(len(sizes)) if dim not in kept])


def _differ(box: Box, dim: int) -> float:
    if box.cells.shape[dim + 1] == 1:
        return -1.0
    others = [one for one in range(len(box.shape)) if one != dim]
    mean = box.cells[2].mean(others) if others else box.cells[2]
    return float(torch.nan_to_num(mean.var(correction=0), 0.0)) + 1e-30 * (dim + 1)


def merge(box: Box, dims: list[int]) -> Box:
    """One cell for all along these dimensions: a mixture."""
    dims = [dim for dim in dims if box.cells.shape[dim + 1] != 1]
    if not dims:
        return box
    mean = box.mean.mean(dims, keepdim=True)
    parts = [
        box.low.amin(dims, keepdim=True),
        box.high.amax(dims, keepdim=True),
        mean,
        (box.square.mean(dims, keepdim=True) - mean**2).clamp_min(0),
        box.bottom.amin(dims, keepdim=True),
        box.top.amax(dims, keepdim=True),
    ]
    log = box.log
    if log is not None and log.ndim == box.cells.ndim:
        mine = [dim for dim in dims if log.shape[dim + 1] != 1]
        if mine:
            centre = log[0].mean(mine, keepdim=True)
            spread = (log[1] ** 2 + log[0] ** 2).mean(mine, keepdim=True) - centre**2
            log = torch.stack([centre, spread.clamp_min(0).sqrt()])
    return replace(box, cells=torch.stack(parts), log=log)


def blank(shape: tuple[int, ...], name: str) -> Box:
    """Nothing is known, for want of a rule for `name`."""
    return make(shape, -math.inf, math.inf, unknown=name)


def total(box: Box, dims: list[int], what: Tensor) -> Tensor:
    """The sum of a cell quantity over whole dimensions (kept with size 1)."""
    for dim in dims:
        size, held = box.shape[dim], what.shape[dim]
        what = what.sum(dim, keepdim=True) if held == size else what * size
    return what


def share_below(mean: Tensor, deviation: Tensor, bound: float) -> Tensor:
    """P(|x| ≤ bound) of normal x."""
    deviation = deviation.clamp_min(1e-300) * math.sqrt(2)
    return 0.5 * (torch.erf((bound - mean) / deviation) - torch.erf((-bound - mean) / deviation))


def finish(box: Box) -> Range:
    """A box as the numbers that others read."""
    low, high = float(box.low.min()), float(box.high.max())
    exact = box.exact
    known: dict[str, Any] = {
        "exact": exact,
        "infinite": box.infinite,
        "masked": box.masked > 0,
        "why": box.why,
        "unknown": box.unknown,
    }
    if bool(torch.isnan(box.cells[2:]).any()):
        return Range(low, high, **known)
    mean = float(box.mean.mean())
    var = max(float(box.square.mean()) - mean * mean, 0.0)
    amax = float(box.cells[4:].abs().max())
    return Range(low, high, mean, var, amax, flushed(box), **known)


def flushed(box: Box) -> float:
    """The share of the non-zero elements that float16 flushes to zero."""
    if box.exact is not None and box.exact.numel() <= 65536 and box.exact.is_floating_point():
        size = box.exact.abs()
        held = int((size > 0).sum())
        return int(((size > 0) & (size <= TINY)).sum()) / held if held else 0.0
    if box.flush is not None:
        return box.flush
    if box.log is not None:
        return _log_share(box.log)
    held_cells = (box.mean != 0) | (box.var > 0)
    if not bool(held_cells.any()):
        return 0.0
    return float(share_below(box.mean, box.var.sqrt(), TINY)[held_cells].mean())


def _log_share(log: Tensor) -> float:
    """The share below TINY of what is not zero in FP32, of log-normal numbers."""
    below = [
        0.5 + 0.5 * torch.erf((end - log[0]) / (log[1].clamp_min(1e-9) * 2**0.5)) for end in (_ZERO, math.log(TINY))
    ]
    zero, tiny = (float(one.mean()) for one in below)
    return (tiny - zero) / (1 - zero) if zero < 1 else 0.0

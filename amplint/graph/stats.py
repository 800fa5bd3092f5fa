"""Exact statistics of a tensor's values, by their exponents: what a half dtype would make of them, at any power-of-two
scale."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

LOW, HIGH = -50, 20  # the bins of a histogram: log2 |x|, what lies outside counts in the outermost ones
_BIAS, _INF = 127, 255  # of a float32's exponent


@dataclass(frozen=True)
class Limits:
    """Where a dtype ends. Powers of two, as exponents; `overflow`: the smallest |x| that rounds to inf."""

    zero: int  # |x| <= 2^zero rounds to zero (to even)
    normal: int  # |x| < 2^normal is subnormal
    overflow: float


LIMITS = {
    torch.float16: Limits(-25, -14, 65520.0),
    torch.bfloat16: Limits(-134, -126, 3.3961775292304957e38),
}


@dataclass(frozen=True)
class Stats:
    """Of a tensor, or of several together. `exponents[e]` counts the values with 2^(e-127) <= |x| < 2^(e-126), for
    e = 1 … 254, as float32 stores them; `powers` those of them that are 2^(e-127) exactly."""

    count: int
    zeros: int
    nan: int
    infinite: int
    absmax: float  # of the finite values
    tiny: float  # the smallest non-zero |x|; 0 where there is none
    mean: float
    std: float
    exponents: torch.Tensor
    powers: torch.Tensor

    @property
    def nonzero(self) -> int:
        """How many values are finite and not zero: what all shares are shares of."""
        return self.count - self.zeros - self.nan - self.infinite

    def flushed(self, dtype: torch.dtype, scale: int = 0) -> float:
        """The share that `dtype` rounds to zero once multiplied by 2^scale."""
        return self._share(self._up_to(LIMITS[dtype].zero - scale, True))

    def subnormal(self, dtype: torch.dtype, scale: int = 0) -> float:
        """The share that is not zero in `dtype`, but has lost bits there."""
        limits = LIMITS[dtype]
        return self._share(self._up_to(limits.normal - scale, False) - self._up_to(limits.zero - scale, True))

    def overflow(self, dtype: torch.dtype, scale: int = 0) -> float:
        """The share that `dtype` rounds to inf, counted from the next power of two on; no less than one value where the
        largest is beyond the limit."""
        limit = LIMITS[dtype].overflow / 2.0**scale
        if self.absmax < limit:
            return 0.0
        return self._share(max(self.nonzero - self._up_to(math.ceil(math.log2(limit)), False), 1))

    def hist(self) -> list[int]:
        """Counts by floor(log2 |x|), bins LOW … HIGH."""
        counts = self.exponents.clone()
        low, high = LOW + _BIAS, HIGH + _BIAS
        inner = counts[low : high + 1].clone()
        inner[0] += counts[:low].sum()
        inner[-1] += counts[high + 1 : _INF].sum()
        return [int(one) for one in inner]

    def _up_to(self, exponent: int, closed: bool) -> int:
        """How many non-zero values have |x| < 2^exponent; <= where closed."""
        at = exponent + _BIAS
        if at < 0:
            return 0
        below = int(self.exponents[: min(at, _INF)].sum())
        return below + (int(self.powers[at]) if closed and 0 < at < _INF else 0)

    def _share(self, number: int) -> float:
        return number / self.nonzero if self.nonzero else 0.0


def of(value: torch.Tensor) -> Stats:
    """Statistics of a floating-point or complex tensor with data, as float32 holds it."""
    value = value.detach()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    flat = value.float().reshape(-1).contiguous()
    bits = flat.view(torch.int32) & 0x7FFFFFFF
    exponent = bits >> 23
    fraction = bits & 0x7FFFFF
    exponents = torch.bincount(exponent, minlength=_INF + 1)
    powers = torch.bincount(exponent[fraction == 0], minlength=_INF + 1)
    zeros, infinite = int(powers[0]), int(powers[_INF])
    nan = int(exponents[_INF]) - infinite
    finite = flat if not nan + infinite else flat[exponent < _INF]
    exponents[0] -= zeros  # what is left are float32's own subnormal numbers
    powers[0] = 0
    exponents[_INF] = powers[_INF] = 0
    std, mean = torch.std_mean(finite.double(), correction=0) if finite.numel() else (torch.zeros(()), torch.zeros(()))
    size = finite.abs()
    least = size[size > 0] if zeros else size
    return Stats(
        count=flat.numel(),
        zeros=zeros,
        nan=nan,
        infinite=infinite,
        absmax=float(size.max()) if size.numel() else 0.0,
        tiny=float(least.min()) if least.numel() else 0.0,
        mean=float(mean),
        std=float(std),
        exponents=exponents,
        powers=powers,
    )


EMPTY = of(torch.zeros(0))


def together(parts: Iterable[Stats]) -> Stats:
    """The statistics of several tensors' values as one."""
    total = EMPTY
    for one in parts:
        left, right = total.count - total.nan - total.infinite, one.count - one.nan - one.infinite
        both = max(left + right, 1)
        mean = (left * total.mean + right * one.mean) / both
        square = (left * (total.std**2 + total.mean**2) + right * (one.std**2 + one.mean**2)) / both
        total = Stats(
            count=total.count + one.count,
            zeros=total.zeros + one.zeros,
            nan=total.nan + one.nan,
            infinite=total.infinite + one.infinite,
            absmax=max(total.absmax, one.absmax),
            tiny=min(total.tiny or one.tiny, one.tiny or total.tiny),
            mean=mean,
            std=math.sqrt(max(square - mean**2, 0.0)),
            exponents=total.exponents + one.exponents,
            powers=total.powers + one.powers,
        )
    return total
